//! The driver passes the contract with the micro guest.

use nephos_driver::contract;

use crate::surroundings::{Machine, qemu_is_installed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_real_guests() {
    if qemu_is_installed() {
        contract::check(Machine::new()).await;
    }
}

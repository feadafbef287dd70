//! The driver passes the contract with the micro guest, in parts that run at the same time.

use nephos_driver::contract;

use crate::surroundings::{Machine, qemu_is_installed};

const PARTS: usize = 3;

async fn part(number: usize) {
    if qemu_is_installed() {
        contract::check_part(Machine::new(), number, PARTS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_real_guests_first_part() {
    part(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_real_guests_second_part() {
    part(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_real_guests_third_part() {
    part(2).await;
}

//! The driver passes the contract with the micro container.

use nephos_driver::contract;

use crate::surroundings::{Machine, containers_can_run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_real_guests() {
    if containers_can_run() {
        contract::check(Machine::new()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_other_runtime() {
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| std::path::Path::new(path).exists());
    match runc {
        Some(runc) if containers_can_run() => contract::check(Machine::with_runtime(runc)).await,
        _ => eprintln!("\n*** NOT TESTED: runc is not installed ***\n"),
    }
}

//! The simulated driver under the contract, and its faults to order.

mod contract;
mod faults;

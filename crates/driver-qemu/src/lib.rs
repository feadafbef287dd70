//! Servers as QEMU virtual machines.

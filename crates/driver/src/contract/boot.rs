//! What a guest begins with.

use nephos_types::Bytes;

use super::{Bench, ok, terminal::Terminal};
use crate::{Boot, Disk, Feature, Firmware, GuestSpec, StopMode};

pub(super) async fn a_kernel_is_loaded_directly_under_each_firmware(bench: &Bench) {
    let driver = bench.driver().await;
    let features = driver.capabilities().features;
    let Some((kernel, initrd, arguments)) = bench.kernel().filter(|_| features.contains(&Feature::Kernel)) else {
        return;
    };
    for (firmware, shown) in [(Firmware::Bios, "it is bios"), (Firmware::Uefi, "it is uefi")] {
        if firmware == Firmware::Uefi && !features.contains(&Feature::Uefi) {
            continue;
        }
        // What looks like an option of the hypervisor is only text.
        let command_line = format!("{arguments} said=to,the=kernel");
        let boot = Boot::Kernel { kernel: kernel.clone(), initrd: Some(initrd.clone()), command_line };
        let disk = Disk { base: None, size: Bytes::mib(16), incarnation: 0 };
        let spec = GuestSpec { boot, firmware, disk, memory: Bytes::mib(256), ..bench.spec() };
        ok("define", driver.define(&spec).await);
        ok("start", driver.start(spec.id).await);
        let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
        terminal.enter("[ -d /sys/firmware/efi ] && echo it \"is\" uefi || echo it \"is\" bios").await;
        terminal.wait_for(shown).await;
        terminal.enter("cat /proc/cmdline").await;
        terminal.wait_for("said=to,the=kernel").await;
        ok("stop", driver.stop(spec.id, StopMode::Hard).await);
        bench.removed(&driver, spec.id).await;
    }
}

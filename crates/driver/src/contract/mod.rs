//! The tests that every compute driver must pass, written against the trait: [`check`] runs them all.
//!
//! A driver's crate implements [`Subject`] for what it is tested on and calls [`check`] from a test. Cases run one
//! after the other, each on guests of its own, and panic with the name of the case and what was expected. They wait for
//! conditions, never for times; [`Subject::patience`] only bounds how long.

mod boot;
mod definition;
mod disk;
mod events;
mod inside;
mod lifecycle;
mod screen;
mod serial;
mod stillness;
mod terminal;

use std::{
    future::Future,
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_types::{Bytes, ServerId};
use tokio::time::{Instant, sleep, timeout};

use crate::{Boot, ComputeDriver, Disk, DiskFormat, Firmware, GuestSpec, Interface, Observation, Power, Presence};

/// A driver under test, and what the tests need to know about its surroundings.
pub trait Subject: Send + Sync + 'static {
    /// A new instance of the driver over the same state, as a restarted agent makes one. No earlier instance is in use.
    fn driver(&self) -> BoxFuture<'_, Arc<dyn ComputeDriver>>;

    /// An image that boots to a login prompt on the serial console; `None` if the driver's guests need none.
    fn base(&self) -> Option<(PathBuf, DiskFormat)>;

    /// User name and password at that prompt. Behind it is a POSIX shell as root.
    fn login(&self) -> (String, String);

    /// What is typed in the shell to have the guest switch itself off.
    fn power_off_command(&self) -> String {
        "poweroff".to_owned()
    }

    /// What is typed in the shell to have the guest restart itself.
    fn reboot_command(&self) -> String {
        "reboot".to_owned()
    }

    /// A Linux kernel and a first root file system that boot to the same login prompt, with the arguments that they need.
    fn kernel(&self) -> Option<(PathBuf, PathBuf, String)> {
        None
    }

    /// What is typed in the shell of a guest in rescue to have its own disk under `/mnt`.
    fn mount_command(&self) -> String {
        "mount /dev/vdb /mnt".to_owned()
    }

    /// Whether something inside its guests answers questions.
    fn answers(&self) -> bool {
        false
    }

    /// A folder in which the driver may be told to make files.
    fn scratch(&self) -> PathBuf;

    /// Ends a running guest from outside, as when its process dies.
    fn kill(&self, id: ServerId, observation: &Observation);

    /// What is left on the machine of a guest that was removed: processes, files, ports. Empty if all is well.
    fn leftovers(&self, id: ServerId) -> Vec<String>;

    /// How long to wait for what a guest does before giving up.
    fn patience(&self) -> Duration;
}

/// Runs the whole contract, or the cases whose names contain what the environment's `NEPHOS_CONTRACT` says. Panics at
/// the first case that fails.
pub async fn check(subject: impl Subject) {
    check_part(subject, 0, 1).await;
}

/// Runs one of so many parts of the contract: together they are all of it. For drivers whose guests take long to boot;
/// each part takes a subject of its own.
pub async fn check_part(subject: impl Subject, part: usize, parts: usize) {
    let mut place = 0;
    let bench = Bench { subject: Box::new(subject) };
    let only = std::env::var("NEPHOS_CONTRACT").ok();
    macro_rules! run {
        ($($module:ident::$case:ident),* $(,)?) => {$(
            let name = stringify!($case).replace('_', " ");
            place += 1;
            if place % parts.max(1) == part && only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
                let started = Instant::now();
                // The name goes out first, so that it is known which case hangs or panics.
                eprintln!("contract: {name} …");
                $module::$case(&bench).await;
                eprintln!("contract: {name}: ok ({:.1?})", started.elapsed());
            }
        )*};
    }
    run!(
        lifecycle::each_call_may_be_repeated,
        lifecycle::what_does_not_exist_is_refused_or_already_so,
        lifecycle::what_does_not_run_is_refused_or_already_so,
        lifecycle::guests_do_not_disturb_each_other,
        lifecycle::a_new_instance_adopts_running_guests,
        lifecycle::usage_grows,
        definition::impossible_definitions_change_nothing,
        definition::hostile_names_are_only_names,
        definition::a_changed_definition_takes_effect_at_the_next_start,
        serial::a_guest_can_be_logged_in_to,
        serial::several_consoles_share_the_line,
        events::a_guest_that_shuts_down_is_reported,
        events::a_guest_that_restarts_is_reported,
        events::a_crash_is_reported_and_can_be_recovered_from,
        events::a_crash_without_anybody_looking_is_found_out,
        lifecycle::a_soft_stop_ends_in_good_order_or_by_force,
        lifecycle::a_reboot_starts_the_guest_again,
        stillness::a_paused_guest_stands_still_and_goes_on,
        stillness::a_suspended_guest_goes_on_from_where_it_was,
        boot::a_kernel_is_loaded_directly_under_each_firmware,
        screen::a_running_guest_can_be_seen,
        disk::what_is_written_stays_until_the_disk_is_another,
        disk::a_snapshot_is_a_base_for_others,
        inside::a_running_guest_can_be_asked,
    );
}

/// What the cases work with.
struct Bench {
    subject: Box<dyn Subject>,
}

impl Deref for Bench {
    type Target = dyn Subject;
    fn deref(&self) -> &Self::Target {
        self.subject.as_ref()
    }
}

impl Bench {
    /// An ordinary definition with an id and an address of its own.
    fn spec(&self) -> GuestSpec {
        static ADDRESS: AtomicU8 = AtomicU8::new(1);
        let mac = format!("52:54:00:00:00:{:02x}", ADDRESS.fetch_add(1, Ordering::Relaxed));
        GuestSpec {
            id: ServerId::new(),
            name: "contract".to_owned(),
            vcpus: 1,
            memory: Bytes::mib(128),
            disk: Disk { base: self.base(), size: Bytes::mib(256), incarnation: 0 },
            firmware: Firmware::Bios,
            boot: Boot::Disk,
            rescue: None,
            interfaces: vec![Interface::User { mac, forwards: vec![] }],
            config_drive: vec![],
        }
    }

    /// A guest that has just been started.
    async fn started(&self, driver: &Arc<dyn ComputeDriver>) -> GuestSpec {
        let spec = self.spec();
        ok("define", driver.define(&spec).await);
        ok("start", driver.start(spec.id).await);
        spec
    }

    /// Asks until the answer is there.
    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut ask: impl FnMut() -> F) -> T {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        self.within(what, asking).await
    }

    /// Waits for something, but not for ever.
    async fn within<T>(&self, what: &str, something: impl Future<Output = T>) -> T {
        match timeout(self.patience(), something).await {
            Ok(answer) => answer,
            Err(_) => panic!("{what}: not within {:?}", self.patience()),
        }
    }

    /// Removes a guest and checks that nothing of it is left.
    async fn removed(&self, driver: &Arc<dyn ComputeDriver>, id: ServerId) {
        ok("remove", driver.remove(id).await);
        assert_eq!(driver.observe(id).await, Presence::Gone, "a removed guest is gone");
        assert!(!ok("list", driver.list().await).contains(&id), "a removed guest is not listed");
        assert_eq!(self.leftovers(id), Vec::<String>::new(), "a removed guest leaves nothing behind");
    }
}

/// The value, or the end of the test with what was being done.
fn ok<T>(doing: &str, result: Result<T, nephos_types::Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{doing}: {error:?} {:?}", error.reasons),
    }
}

/// The code of the error that is expected.
fn refused<T>(doing: &str, result: Result<T, nephos_types::Error>) -> String {
    match result {
        Ok(_) => panic!("{doing}: must be refused"),
        Err(error) => error.code.into_owned(),
    }
}

/// What an existing guest is.
async fn observed(driver: &Arc<dyn ComputeDriver>, id: ServerId) -> Observation {
    match driver.observe(id).await {
        Presence::Present(observation) => observation,
        other => panic!("{id} exists, but is observed as {other:?}"),
    }
}

async fn power(driver: &Arc<dyn ComputeDriver>, id: ServerId) -> Power {
    observed(driver, id).await.power
}

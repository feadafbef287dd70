//! What a guest should be: bad definitions, hostile ones, changed ones.

use nephos_types::Bytes;

use super::{Bench, observed, ok, refused, terminal::Terminal};
use crate::{ConfigFile, GuestSpec, Interface, Power, Presence, StopMode};

pub(super) async fn impossible_definitions_change_nothing(bench: &Bench) {
    let driver = bench.driver().await;
    type Spoil = fn(&mut GuestSpec);
    let spoils: [(&str, Spoil); 6] = [
        ("no CPU", |spec| spec.vcpus = 0),
        ("no memory", |spec| spec.memory = Bytes(0)),
        ("endless memory", |spec| spec.memory = Bytes(u64::MAX)),
        ("endless disk", |spec| spec.disk.size = Bytes(u64::MAX)),
        ("an address with options behind it", |spec| {
            let mac = "52:54:00:00:00:01,romfile=/etc/passwd".to_owned();
            spec.interfaces = vec![Interface::User { mac, forwards: vec![] }];
        }),
        ("a file outside the drive", |spec| {
            spec.config_drive = vec![ConfigFile { path: "../../../../tmp/x".to_owned(), content: String::new() }];
        }),
    ];
    for (what, spoil) in spoils {
        let mut spec = bench.spec();
        spoil(&mut spec);
        assert_eq!(refused(what, driver.define(&spec).await), "invalid_guest");
        assert_eq!(driver.observe(spec.id).await, Presence::Gone, "{what}: nothing was made");
        assert_eq!(bench.leftovers(spec.id), Vec::<String>::new(), "{what}: nothing was made");
    }
    // A good definition is not lost to a bad one.
    let good = bench.spec();
    ok("define", driver.define(&good).await);
    assert_eq!(refused("redefine", driver.define(&GuestSpec { vcpus: 0, ..good.clone() }).await), "invalid_guest");
    ok("start as first defined", driver.start(good.id).await);
    bench.removed(&driver, good.id).await;
}

pub(super) async fn hostile_names_are_only_names(bench: &Bench) {
    let driver = bench.driver().await;
    for name in [
        "web,if=none,file=/etc/passwd,format=raw",
        "-S",
        "a=b,,c=d\" ' $(reboot) `reboot` ; reboot #",
        "%s%n\\0\\n{\"execute\":\"quit\"}",
        "\u{202e}größe 名前 🦀",
        "../../../../etc",
        "line\nbreak\u{1b}[2J",
    ] {
        let mut spec = bench.spec();
        name.clone_into(&mut spec.name);
        spec.config_drive =
            vec![ConfigFile { path: "meta-data".to_owned(), content: format!("local-hostname: {name}\n") }];
        ok(name, driver.define(&spec).await);
        ok(name, driver.start(spec.id).await);
        assert_eq!(observed(&driver, spec.id).await.power, Power::On, "{name}");
        bench.removed(&driver, spec.id).await;
    }
}

pub(super) async fn a_changed_definition_takes_effect_at_the_next_start(bench: &Bench) {
    let driver = bench.driver().await;
    let spec = bench.started(&driver).await;
    let running = observed(&driver, spec.id).await;
    ok("define with another CPU", driver.define(&GuestSpec { vcpus: 2, ..spec.clone() }).await);
    assert_eq!(observed(&driver, spec.id).await, running, "a running guest is left alone");
    let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
    terminal.enter("nproc").await;
    terminal.wait_for("1\r\n").await;
    ok("stop", driver.stop(spec.id, StopMode::Hard).await);
    ok("start", driver.start(spec.id).await);
    let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
    terminal.enter("nproc").await;
    terminal.wait_for("2\r\n").await;
    bench.removed(&driver, spec.id).await;
}

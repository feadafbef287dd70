//! `cargo xtask up`: from a clone to a server one can log in to.

use std::{
    fs,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    process::{Outcome, cargo, output, run, succeeds, target_folder},
    system,
};

/// A cloud answers within this, or something is wrong.
const START_LIMIT: Duration = Duration::from_secs(120);

fn nephos() -> PathBuf {
    target_folder().join("release/nephos")
}

fn data_folder(arguments: &[String]) -> PathBuf {
    let flag = arguments.iter().position(|argument| argument == "--data").and_then(|at| arguments.get(at + 1));
    if let Some(folder) = flag {
        return folder.into();
    }
    if let Some(folder) = std::env::var_os("NEPHOS_DATA") {
        return folder.into();
    }
    if output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
        return "/var/lib/nephos".into();
    }
    std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")))
        .unwrap_or_else(|| ".".into())
        .join("nephos")
}

fn pid_file() -> PathBuf {
    crate::process::cache_folder().join("up.pid")
}

fn step(text: &str) {
    println!("\n== {text}");
}

pub(crate) fn up(arguments: &[String]) -> Outcome {
    step("system packages");
    system::ensure_running()?;
    println!("all there");

    step("build");
    run(cargo().args(["build", "--release", "--package", "nephos"]))?;

    let data = data_folder(arguments);
    let client = |words: &[&str]| {
        let mut command = Command::new(nephos());
        command.args(words).env("NEPHOS_DATA", &data);
        command
    };

    step("start the cloud");
    if succeeds(&mut client(&["project", "list"])) {
        println!("it runs already; data in {}", data.display());
    } else {
        start(arguments, &data)?;
    }

    step("the small guest image");
    if succeeds(&mut client(&["image", "show", "micro"])) {
        println!("it is there already");
    } else {
        run(client(&["image", "build", "micro"]).env("NEPHOS_CLOUD", "nephos-admin"))?;
    }

    step("a first server");
    if succeeds(&mut client(&["server", "show", "hello"])) {
        println!("it is there already");
    } else {
        run(&mut client(&["server", "create", "hello", "--image", "micro", "--flavor", "tiny", "--forward", "22"]))?;
    }
    let log = wait_for_login(&client)?;
    println!("{}", log.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"));

    let binary = nephos();
    let prefix = if data == data_folder(&[]) { String::new() } else { format!("NEPHOS_DATA={} ", data.display()) };
    let url = fs::read_to_string(data.join("endpoint")).unwrap_or_else(|_| "http://127.0.0.1:6780".to_owned());
    let url = url.trim();
    println!(
        "\n\
         The cloud is up, and a server runs in it.\n\n  \
         log in to it    {prefix}{0} server console hello      (root, password nephos; Ctrl-] leaves)\n  \
         look around     {prefix}{0} server list\n  \
         API             {url}/v1   ·   {url}/openapi.json   ·   {url}/xmlrpc\n  \
         credentials     {1}/clouds.yaml, openrc, aws-credentials\n  \
         log             {1}/nephos.log\n  \
         stop            cargo xtask down      (servers keep running)",
        binary.display(),
        data.display(),
    );
    Ok(())
}

fn start(arguments: &[String], data: &Path) -> Outcome {
    let told = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    // What the cloud prints holds a password, and what it logs is nobody else's business.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(|error| told(data, error))?;
    let open = |path: &Path| {
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| told(path, error))
    };
    let log_path = data.join("nephos.log");
    let welcome = data.join("welcome.txt");
    let _ = fs::remove_file(&welcome);
    let (log, out) = (open(&log_path)?, open(&welcome)?);
    let mut child = Command::new(nephos())
        .arg("up")
        .args(arguments)
        .env("NEPHOS_DATA", data)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(log)
        // Its own group, so that Ctrl-C here does not reach it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{}: {error}", nephos().display()))?;
    let begin = Instant::now();
    let greeting = loop {
        // Printed once everything serves.
        let printed = fs::read_to_string(&welcome).map_err(|error| told(&welcome, error))?;
        if !printed.is_empty() {
            break printed;
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("the cloud ended at once ({status}); see {}", log_path.display()));
        }
        if begin.elapsed() > START_LIMIT {
            return Err(format!("the cloud does not answer; see {}", log_path.display()));
        }
        pause();
    };
    fs::create_dir_all(crate::process::cache_folder()).map_err(|error| error.to_string())?;
    fs::write(pid_file(), child.id().to_string()).map_err(|error| error.to_string())?;
    print!("{greeting}");
    // What is printed once shall not stay on the disk.
    let _ = fs::remove_file(&welcome);
    Ok(())
}

/// Waits until the console shows a login prompt, and returns the end of the console log.
fn wait_for_login(client: &dyn Fn(&[&str]) -> Command) -> Outcome<String> {
    let begin = Instant::now();
    loop {
        let log = output(&mut client(&["server", "console-log", "hello"])).unwrap_or_default();
        if log.contains("login:") {
            println!("it shows its login prompt");
            return Ok(log);
        }
        if begin.elapsed() > START_LIMIT {
            return Err("the server shows no login prompt; see `nephos server console-log hello`".to_owned());
        }
        pause();
    }
}

#[allow(clippy::disallowed_methods, reason = "a plain program without a runtime")]
fn pause() {
    std::thread::sleep(Duration::from_millis(300));
}

pub(crate) fn down() -> Outcome {
    let pid = fs::read_to_string(pid_file()).map_err(|_| "no cloud was started by `cargo xtask up`".to_owned())?;
    run(Command::new("kill").arg(pid.trim()))?;
    let _ = fs::remove_file(pid_file());
    println!("told it to stop; its servers keep running");
    Ok(())
}

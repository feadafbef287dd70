//! Configuration of the server commands: flag, then environment, then `nephos.toml`, then built in.
//!
//! An unknown key is an error: a setting that is silently ignored is worse than one that is missing.

use std::{
    fs,
    io::{self, Read as _},
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nephos_cloud::Shared;
use nephos_ops::image::StoreKind;
use nephos_types::{Error, Result, Secret};
use serde::Deserialize;

/// Where the system's own configuration is.
const SYSTEM_FILE: &str = "/etc/nephos/nephos.toml";
/// The file in the data folder that holds the key to the secrets in a shared database.
pub(crate) const SECRET: &str = "secret.key";
/// The folder in the data folder with the keys that images' signatures are checked with.
const IMAGE_KEYS: &str = "image-keys";
/// The name of the file in the data folder.
const FILE: &str = "nephos.toml";

/// What `nephos.toml` may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    listen: Option<SocketAddr>,
    s3_listen: Option<SocketAddr>,
    node_listen: Option<SocketAddr>,
    node_name: Option<String>,
    simulated_nodes: Option<u32>,
    keep_audit_days: Option<u32>,
    keep_workflows_days: Option<u32>,
    rotate_keys_days: Option<u32>,
    trash_hours: Option<u32>,
    confirm_resize_hours: Option<u32>,
    vendor_data_file: Option<PathBuf>,
    log: Option<String>,
    database: Option<String>,
    secret_file: Option<PathBuf>,
    images: Option<PathBuf>,
    node_address: Option<String>,
    image_s3: Option<S3>,
    image_store: Option<StoreKind>,
    keep_original_images: Option<bool>,
    import_allow: Option<Vec<String>>,
}

/// A bucket for images.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct S3 {
    endpoint: String,
    bucket: String,
    #[serde(default = "first_region")]
    region: String,
    #[serde(default)]
    prefix: String,
    #[serde(default = "yes")]
    path_style: bool,
    access_key: String,
    secret_key_file: PathBuf,
}

fn first_region() -> String {
    "us-east-1".to_owned()
}

fn yes() -> bool {
    true
}

impl S3 {
    fn settings(self) -> Result<nephos_cloud::image::s3::Settings> {
        let path = self.secret_key_file;
        let secret = fs::read_to_string(&path).map_err(|error| {
            Error::invalid("config", format!("{} cannot be read", path.display())).detail(error.to_string())
        })?;
        Ok(nephos_cloud::image::s3::Settings {
            endpoint: self.endpoint,
            bucket: self.bucket,
            region: self.region,
            prefix: self.prefix,
            path_style: self.path_style,
            access_key: self.access_key,
            secret_key: secret.trim().parse()?,
        })
    }
}

/// For how many days history, or a key, may be kept.
const KEEP_DAYS: RangeInclusive<i64> = 1..=3650;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Effective settings of `nephos up`.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The data folder.
    pub(crate) data: PathBuf,
    /// Where every API is served.
    pub(crate) listen: SocketAddr,
    /// Where agents of other machines dial.
    pub(crate) node_listen: SocketAddr,
    /// What this machine is called as a node.
    pub(crate) node_name: Option<String>,
    /// By which address agents reach this process, if not by the one it listens on.
    pub(crate) node_address: Option<String>,
    /// The database to share with other controllers; `None` for one of this process's own.
    pub(crate) shared: Option<Shared>,
    /// Whether controllers of another version are not waited for.
    pub(crate) take_over: bool,
    /// How many simulated nodes stand in for this machine; 0 for the real one.
    pub(crate) simulated_nodes: u32,
    /// How images come in.
    pub(crate) images: nephos_cloud::image::Settings,
    /// How long the audit trail is kept.
    pub(crate) keep_audit: Duration,
    /// How long closed workflow runs are kept.
    pub(crate) keep_workflows: Duration,
    /// How old the key that signs tokens gets.
    pub(crate) rotate_keys_after: Duration,
    /// What is decided about servers.
    pub(crate) compute: nephos_cloud::compute::Settings,
    /// Log level, or levels per target: `info,nephos_cloud=debug`.
    pub(crate) log: String,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Presets the first administrator's password.
    pub(crate) admin_password: Option<Secret>,
}

fn flag(name: &'static str, variable: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).env(variable).hide_env_values(true).value_name(value).help(help)
}

/// The flags that all server commands share.
pub(crate) fn common(command: Command) -> Command {
    command
        .arg(
            flag(
                "data",
                "NEPHOS_DATA",
                "DIR",
                "Data folder [default: /var/lib/nephos as root, else $XDG_DATA_HOME/nephos]",
            )
            .value_parser(value_parser!(PathBuf)),
        )
        .arg(flag(
            "log",
            "NEPHOS_LOG",
            "LEVELS",
            "What is logged, e.g. info or info,nephos_cloud=debug [default: info]",
        ))
        .arg(
            flag("log-format", "NEPHOS_LOG_FORMAT", "FORMAT", "How log lines look; json unless on a terminal")
                .value_parser(["pretty", "json"]),
        )
}

/// The flags of `nephos up`.
pub(crate) fn up(command: Command) -> Command {
    serving(command)
        .arg(flag(
            "node-name",
            "NEPHOS_NODE_NAME",
            "NAME",
            "What this machine is called as a node [default: its host name]",
        ))
        .arg(
            flag(
                "simulated-nodes",
                "NEPHOS_SIMULATED_NODES",
                "N",
                "Stand in N simulated nodes for this machine; their servers are not real",
            )
            .value_parser(value_parser!(u32).range(0..=100_000)),
        )
}

/// The flags that say which database controllers share, and the key to the cloud's secrets in it.
pub(crate) fn sharing(command: Command) -> Command {
    command
        .arg(flag(
            "database",
            "NEPHOS_DATABASE",
            "URL",
            "The PostgreSQL database that all controllers share: postgres://USER:PASSWORD@HOST/DATABASE",
        ))
        .arg(
            flag(
                "secret-file",
                "NEPHOS_SECRET_FILE",
                "FILE",
                "The key to the cloud's secrets in the database, the same on all machines [default: secret.key in the data folder]",
            )
            .value_parser(value_parser!(PathBuf)),
        )
}

/// The flags of `nephos controller`.
pub(crate) fn controller(command: Command) -> Command {
    sharing(serving(command))
        .arg(
            flag(
                "images",
                "NEPHOS_IMAGES",
                "DIR",
                "The folder of images, which all controllers must see [default: images in the data folder]",
            )
            .value_parser(value_parser!(PathBuf)),
        )
        .arg(flag(
            "node-address",
            "NEPHOS_NODE_ADDRESS",
            "HOST:PORT",
            "By which agents reach this controller [default: what --node-listen says]",
        ))
        .arg(
            Arg::new("take-over")
                .long("take-over")
                .action(ArgAction::SetTrue)
                .help("Do not wait until controllers of another version have ended; they end when this one begins"),
        )
}

/// The flags of whatever serves the APIs.
fn serving(command: Command) -> Command {
    let address = || value_parser!(SocketAddr);
    common(command)
        .arg(
            flag("listen", "NEPHOS_LISTEN", "ADDR:PORT", "Where every API is served [default: 127.0.0.1:6780]")
                .value_parser(address()),
        )
        .arg(
            flag(
                "s3-listen",
                "NEPHOS_S3_LISTEN",
                "ADDR:PORT",
                "Where S3 will be served; accepted already, not used yet [default: 127.0.0.1:6781]",
            )
            .value_parser(address()),
        )
        .arg(
            flag(
                "node-listen",
                "NEPHOS_NODE_LISTEN",
                "ADDR:PORT",
                "Where agents of other machines dial, always TLS [default: 127.0.0.1:6782]",
            )
            .value_parser(address()),
        )
        .arg(
            flag("keep-audit-days", "NEPHOS_KEEP_AUDIT_DAYS", "DAYS", "How long the audit trail is kept [default: 90]")
                .value_parser(value_parser!(u32).range(KEEP_DAYS)),
        )
        .arg(
            flag(
                "keep-workflows-days",
                "NEPHOS_KEEP_WORKFLOWS_DAYS",
                "DAYS",
                "How long ended workflows are kept, at most 20000 of them [default: 30]",
            )
            .value_parser(value_parser!(u32).range(KEEP_DAYS)),
        )
        .arg(
            flag(
                "rotate-keys-days",
                "NEPHOS_ROTATE_KEYS_DAYS",
                "DAYS",
                "How old the key gets that signs tokens; nobody is logged out [default: 30]",
            )
            .value_parser(value_parser!(u32).range(KEEP_DAYS)),
        )
}

fn read(path: &Path) -> Result<Option<File>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(
                Error::invalid("config", format!("{} cannot be read", path.display())).detail(error.to_string())
            );
        }
    };
    toml::from_str(&text).map(Some).map_err(|error| {
        Error::invalid("config", format!("{} is not valid", path.display()))
            .detail(error.message().to_owned())
            .next("known keys: data, listen, s3_listen, node_listen, node_name, simulated_nodes, keep_audit_days, keep_workflows_days, rotate_keys_days, trash_hours, confirm_resize_hours, vendor_data_file, log, database, secret_file, images, image_s3, image_store, node_address, keep_original_images, import_allow", None)
    })
}

/// The data folder when nobody names one.
fn default_data() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/nephos".into());
    }
    std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")))
        .map(|base| base.join("nephos"))
        .ok_or_else(|| {
            Error::invalid("config", "There is no data folder")
                .detail("neither --data nor HOME is set")
                .next("name one with --data", None)
        })
}

/// The data folder that a command means.
pub(crate) fn data_folder(matches: &ArgMatches) -> Result<PathBuf> {
    match matches.get_one::<PathBuf>("data") {
        Some(data) => Ok(data.clone()),
        None => read(Path::new(SYSTEM_FILE))?.and_then(|file| file.data).map_or_else(default_data, Ok),
    }
}

/// The value of a flag that not every command has.
fn optional<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Option<T> {
    matches.try_get_one::<T>(name).ok().flatten().cloned()
}

fn address(matches: &ArgMatches, name: &str) -> Option<SocketAddr> {
    matches.get_one::<SocketAddr>(name).copied()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A number of days out of a flag, or files in their order.
fn days(matches: &ArgMatches, flag: &str, files: [Option<u32>; 2], default: u32) -> Result<Duration> {
    let set = matches.get_one::<u32>(flag).copied().or_else(|| files.into_iter().flatten().next());
    let days = set.unwrap_or(default);
    if !KEEP_DAYS.contains(&i64::from(days)) {
        return Err(Error::invalid("config", format!("`{}` is out of range", flag.replace('-', "_"))).detail(format!(
            "{days} days; {} to {} are possible",
            KEEP_DAYS.start(),
            KEEP_DAYS.end()
        )));
    }
    Ok(Duration::from_secs(u64::from(days) * 86400))
}

/// What presets the first administrator's password.
fn admin_password() -> Result<Option<Secret>> {
    match std::env::var("NEPHOS_ADMIN_PASSWORD") {
        Ok(password) if !password.is_empty() => password.parse().map(Some),
        _ => Ok(None),
    }
}

/// What is logged, and how.
pub(crate) fn logging(matches: &ArgMatches, file: Option<String>) -> (String, LogFormat) {
    let levels = matches.get_one::<String>("log").cloned().or(file).unwrap_or_else(|| "info".to_owned());
    let format = match matches.get_one::<String>("log-format").map(String::as_str) {
        Some("json") => LogFormat::Json,
        Some(_) => LogFormat::Pretty,
        None if io::IsTerminal::is_terminal(&io::stderr()) => LogFormat::Pretty,
        None => LogFormat::Json,
    };
    (levels, format)
}

impl Config {
    /// Effective settings out of flags, environment and files.
    pub(crate) fn of(matches: &ArgMatches) -> Result<Self> {
        let data = data_folder(matches)?;
        let own = read(&data.join(FILE))?.unwrap_or_default();
        let system = read(Path::new(SYSTEM_FILE))?.unwrap_or_default();
        // Read so that a wrong address is refused now; nothing is served there yet.
        let _ = address(matches, "s3-listen").or(own.s3_listen).or(system.s3_listen);
        let keep_audit = days(matches, "keep-audit-days", [own.keep_audit_days, system.keep_audit_days], 90)?;
        let keep_workflows =
            days(matches, "keep-workflows-days", [own.keep_workflows_days, system.keep_workflows_days], 30)?;
        let rotate_keys_after = days(matches, "rotate-keys-days", [own.rotate_keys_days, system.rotate_keys_days], 30)?;
        let compute = nephos_cloud::compute::Settings {
            trash: hours("trash_hours", own.trash_hours.or(system.trash_hours))?,
            confirm_resize_after: hours(
                "confirm_resize_hours",
                own.confirm_resize_hours.or(system.confirm_resize_hours),
            )?,
            vendor_data: own.vendor_data_file.or(system.vendor_data_file).as_deref().map(vendor_data).transpose()?,
        };
        let (log, log_format) = logging(matches, own.log.or(system.log));
        let database = optional::<String>(matches, "database").or(own.database).or(system.database);
        let secret = optional(matches, "secret-file").or(own.secret_file).or(system.secret_file);
        let images = optional(matches, "images").or(own.images).or(system.images);
        let allowed = own.import_allow.or(system.import_allow).unwrap_or_default();
        Ok(Self {
            images: nephos_cloud::image::Settings {
                keep_originals: own.keep_original_images.or(system.keep_original_images).unwrap_or(false),
                import: nephos_cloud::image::fetch::address::Allowed::parse(&allowed)?,
                s3: own.image_s3.or(system.image_s3).map(S3::settings).transpose()?,
                store: own.image_store.or(system.image_store),
                ..nephos_cloud::image::Settings::new(data.join(IMAGE_KEYS))
            },
            shared: database.map(|database| Shared {
                database,
                secret: secret.unwrap_or_else(|| data.join(SECRET)),
                images,
            }),
            take_over: optional(matches, "take-over").unwrap_or(false),
            node_address: optional(matches, "node-address").or(own.node_address).or(system.node_address),
            data,
            listen: address(matches, "listen").or(own.listen).or(system.listen).unwrap_or(loopback(6780)),
            node_listen: address(matches, "node-listen")
                .or(own.node_listen)
                .or(system.node_listen)
                .unwrap_or(loopback(6782)),
            node_name: optional(matches, "node-name").or(own.node_name).or(system.node_name),
            simulated_nodes: optional(matches, "simulated-nodes")
                .or(own.simulated_nodes)
                .or(system.simulated_nodes)
                .unwrap_or(0),
            keep_audit,
            keep_workflows,
            rotate_keys_after,
            compute,
            log,
            log_format,
            admin_password: admin_password()?,
        })
    }
}

/// The content of a file of vendor data.
fn vendor_data(path: &Path) -> Result<String> {
    const MOST: u64 = 64 << 10;
    let refused = |why: String| {
        Error::invalid("config", "`vendor_data_file` cannot be used").detail(format!("{}: {why}", path.display()))
    };
    let file = fs::File::open(path).map_err(|error| refused(error.to_string()))?;
    let mut content = String::new();
    file.take(MOST + 1).read_to_string(&mut content).map_err(|error| refused(error.to_string()))?;
    if content.len() as u64 > MOST { Err(refused(format!("at most {MOST} bytes are accepted"))) } else { Ok(content) }
}

/// So many hours, at most a year; none and 0 mean never.
fn hours(key: &str, hours: Option<u32>) -> Result<Option<Duration>> {
    const MOST: u32 = 8760;
    match hours {
        None | Some(0) => Ok(None),
        Some(hours @ 1..=MOST) => Ok(Some(Duration::from_secs(u64::from(hours) * 3600))),
        Some(_) => Err(Error::invalid("config", format!("`{key}` is too large"))
            .detail(format!("at most {MOST} are accepted; 0 means never"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config> {
        let matches = up(Command::new("up")).try_get_matches_from([&["up"], arguments].concat()).unwrap();
        Config::of(&matches)
    }

    #[test]
    fn a_flag_wins_over_the_file_and_an_unknown_key_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().to_str().unwrap();
        fs::write(data.path().join(FILE), "listen = \"127.0.0.1:7001\"\nnode_listen = \"127.0.0.1:7002\"\n").unwrap();
        let effective = config(&["--data", folder, "--listen", "127.0.0.1:7000"]).unwrap();
        assert_eq!((effective.listen.port(), effective.node_listen.port()), (7000, 7002));
        fs::write(data.path().join(FILE), "keep_workflows_days = 7\nkeep_audit_days = 8\nrotate_keys_days = 3\n")
            .unwrap();
        let effective = config(&["--data", folder, "--keep-audit-days", "9"]).unwrap();
        assert_eq!((effective.keep_audit.as_secs(), effective.keep_workflows.as_secs()), (9 * 86400, 7 * 86400));
        assert_eq!(effective.rotate_keys_after.as_secs(), 3 * 86400);
        fs::write(data.path().join(FILE), "keep_original_images = true\nimport_allow = [\"10.0.0.0/8\"]\n").unwrap();
        assert!(config(&["--data", folder]).unwrap().images.keep_originals);
        fs::write(data.path().join(FILE), "import_allow = [\"10.0.0.0/99\"]\n").unwrap();
        assert!(config(&["--data", folder]).unwrap_err().title.contains("10.0.0.0/99"));
        fs::write(data.path().join(FILE), "keep_workflows_days = 0\n").unwrap();
        let error = config(&["--data", folder]).unwrap_err();
        assert!(error.title.contains("keep_workflows_days") && error.detail.contains("3650"), "{error}");
        fs::write(data.path().join(FILE), "lisen = \"127.0.0.1:7001\"\n").unwrap();
        let error = config(&["--data", folder]).unwrap_err();
        assert!(error.detail.contains("lisen"), "{error}");
    }
}

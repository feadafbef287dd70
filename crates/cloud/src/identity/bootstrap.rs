//! The first start: what exists before anybody can log in, and the files with which the administrator does.
//!
//! The files are written before the one transaction that makes everything. A crash in between leaves files that open
//! nothing, and the next start writes them anew with another password; a crash after the transaction has nothing left
//! to do. So the password is never kept in clear outside those files, and never lost.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nephos_auth::{
    password::{generate_password, generate_secret},
    write_private,
};
use nephos_ops::Role as BuiltIn;
use nephos_store::{Author, CommitError, Draft, Transaction};
use nephos_types::{AccessKeyId, AssignmentId, DomainId, Error, Name, ProjectId, Result, RoleId, Secret, UserId};

use super::{
    Authority,
    kinds::{
        AccessKey, AccessKeySecret, Actor, Assignment, BUILT_IN_ROLES, Domain, Project, Role, Target, User, UserSecret,
    },
};
use crate::{CLOUD, name_claim};

/// The domain that the first start makes, and in which names are looked up when a login names none.
pub(super) const DEFAULT_DOMAIN: &str = "default";

/// The claim that says that there has been a first start; its owner is the administrator.
const DONE: &str = "identity/first-start";

const ADMIN: &str = "admin";
const DEMO: &str = "demo";
const REGION: &str = "RegionOne";

/// What the first start is told.
#[derive(Clone, Debug)]
pub struct FirstStart {
    /// The administrator's password; a generated one when absent.
    pub admin_password: Option<Secret>,
    /// Where this cloud is reached: `http://127.0.0.1:6780`.
    pub url: String,
    /// The file with the certificate to trust this cloud by, where it is reached by https.
    pub authority: PathBuf,
}

/// What to print once, after the first start.
#[derive(Clone, Debug)]
pub struct Printed {
    /// The administrator's name.
    pub user: &'static str,
    /// The administrator's password, if it was generated.
    pub password: Option<Secret>,
    /// The files that hold credentials.
    pub files: Vec<PathBuf>,
}

/// Makes what must exist. After the first start it only brings the address in the files up to date, and returns `None`.
pub async fn bootstrap(authority: &Authority, data: &Path, first: FirstStart) -> Result<Option<Printed>> {
    if authority.store.owner(DONE).is_some() {
        update_address(data, &first)?;
        return Ok(None);
    }
    let generated = first.admin_password.is_none();
    let password = match first.admin_password.clone() {
        Some(password) => password,
        None => generate_password()?,
    };
    let access_key = AccessKeyId::new();
    let access_secret = generate_secret()?;
    let hash = authority.passwords.hash(password.clone()).await?;
    let sealed = authority.vault.seal(&access_key.to_string(), &access_secret)?;
    let transaction = everything(hash, access_key, sealed)?;

    let mut files = vec![];
    for (name, content) in [
        ("clouds.yaml", clouds_yaml(&first, &password)?),
        ("openrc", openrc(&first, DEMO, &password)),
        ("openrc-admin", openrc(&first, ADMIN, &password)),
        ("aws-credentials", aws_credentials(access_key, &access_secret)),
    ] {
        let path = data.join(name);
        write_private(&path, content.as_bytes())?;
        files.push(path);
    }
    match authority.store.commit(transaction).await {
        Ok(_) => {}
        // Another process of the control plane was first; it has the files that open something.
        Err(CommitError::Taken { key, .. }) if key == DONE => {
            for path in &files {
                let _ = fs::remove_file(path);
            }
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Some(Printed { user: ADMIN, password: generated.then_some(password), files }))
}

/// Domain, roles, projects, administrator, assignments, access key: one transaction.
fn everything(password_hash: String, access_key: AccessKeyId, sealed: String) -> Result<Transaction> {
    let name = |text: &str| text.parse::<Name>();
    let (domain, admin) = (DomainId::new(), UserId::new());
    let (admin_project, demo) = (ProjectId::new(), ProjectId::new());
    let mut transaction = Transaction::new(Author::new("cloud").operation("first-start"))
        .claim(DONE, admin)
        .claim(name_claim::<Domain>(CLOUD, DEFAULT_DOMAIN), domain)
        .create(
            Draft::new(domain, Domain { description: "Made by the first start".to_owned(), enabled: true })
                .name(name(DEFAULT_DOMAIN)?),
        );

    let mut roles: Vec<(BuiltIn, RoleId)> = vec![];
    for (role, implied, description) in BUILT_IN_ROLES {
        let id = RoleId::new();
        let implies = implied
            .iter()
            .filter_map(|implied| roles.iter().find(|(known, _)| known == implied).map(|(_, id)| *id))
            .collect();
        let body = Role { description: description.to_owned(), implies, built_in: true };
        transaction = transaction
            .claim(name_claim::<Role>(CLOUD, role.name()), id)
            .create(Draft::new(id, body).name(name(role.name())?));
        roles.push((role, id));
    }
    let admin_role = roles
        .iter()
        .find_map(|(role, id)| (*role == BuiltIn::Admin).then_some(*id))
        .ok_or_else(|| Error::bug("there is no built-in role `admin`"))?;

    for (id, text) in [(admin_project, ADMIN), (demo, DEMO)] {
        let body = Project { domain, parent: None, description: "Made by the first start".to_owned(), enabled: true };
        transaction =
            transaction.claim(name_claim::<Project>(domain, text), id).create(Draft::new(id, body).name(name(text)?));
    }

    let user = User {
        domain,
        description: "The cloud's administrator".to_owned(),
        email: None,
        enabled: true,
        default_project: Some(demo),
        epoch: 0,
    };
    transaction = transaction
        .claim(name_claim::<User>(domain, ADMIN), admin)
        .create(Draft::new(admin, user).name(name(ADMIN)?))
        .create(Draft::new(admin, UserSecret { password_hash }));
    for target in [Target::Project(admin_project), Target::Project(demo), Target::System] {
        let assignment = Assignment { role: admin_role, actor: Actor::User(admin), target, inherited: false };
        let id = AssignmentId::new();
        transaction = transaction.claim(assignment.claim(), id).create(Draft::new(id, assignment));
    }

    let key =
        AccessKey { user: admin, description: "Made by the first start".to_owned(), application_credential: None };
    Ok(transaction
        .create(Draft::new(access_key, key).project(demo))
        .create(Draft::new(access_key, AccessKeySecret { sealed })))
}

/// The standard file of OpenStack's clients. A JSON string is a YAML string, whatever it contains.
fn clouds_yaml(first: &FirstStart, password: &Secret) -> Result<String> {
    let quoted =
        serde_json::to_string(password).map_err(|error| Error::internal("clouds.yaml could not be rendered", error))?;
    let (url, authority) = (&first.url, json_path(&first.authority));
    let mut text = "clouds:\n".to_owned();
    for (cloud, project) in [("nephos", DEMO), ("nephos-admin", ADMIN)] {
        text.push_str(&format!(
            "  {cloud}:\n    auth:\n      auth_url: {url}/identity/v3\n      username: {ADMIN}\n      password: {quoted}\n      \
             project_name: {project}\n      user_domain_name: {DEFAULT_DOMAIN}\n      project_domain_name: {DEFAULT_DOMAIN}\n    \
             identity_api_version: 3\n    region_name: {REGION}\n    interface: public\n    cacert: {authority}\n"
        ));
    }
    Ok(text)
}

/// To be sourced by a shell.
fn openrc(first: &FirstStart, project: &str, password: &Secret) -> String {
    let for_shell = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let quoted = for_shell(password.reveal());
    let authority = for_shell(&first.authority.to_string_lossy());
    let url = &first.url;
    let variables = [
        ("NEPHOS_URL", url.to_owned()),
        ("NEPHOS_CACERT", authority.clone()),
        ("OS_CACERT", authority),
        ("OS_AUTH_URL", format!("{url}/identity/v3")),
        ("OS_IDENTITY_API_VERSION", "3".to_owned()),
        ("OS_USERNAME", ADMIN.to_owned()),
        ("OS_PASSWORD", quoted),
        ("OS_PROJECT_NAME", project.to_owned()),
        ("OS_USER_DOMAIN_NAME", DEFAULT_DOMAIN.to_owned()),
        ("OS_PROJECT_DOMAIN_NAME", DEFAULT_DOMAIN.to_owned()),
        ("OS_REGION_NAME", REGION.to_owned()),
        ("OS_INTERFACE", "public".to_owned()),
    ];
    variables.iter().map(|(name, value)| format!("export {name}={value}\n")).collect()
}

/// For `AWS_SHARED_CREDENTIALS_FILE`.
fn aws_credentials(key: AccessKeyId, secret: &Secret) -> String {
    format!("[nephos]\naws_access_key_id = {key}\naws_secret_access_key = {}\n", secret.reveal())
}

fn json_path(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Where the cloud moved to another address or folder, its own files follow; files that people removed stay away.
fn update_address(data: &Path, first: &FirstStart) -> Result<()> {
    let Some(clouds) = read(&data.join("clouds.yaml"))? else { return Ok(()) };
    let old = |before: &str, after: &str| {
        clouds.lines().find_map(|line| line.trim().strip_prefix(before)?.strip_suffix(after)).map(str::to_owned)
    };
    let authority = first.authority.to_string_lossy().into_owned();
    let moved: Vec<(String, String)> = [
        (old("auth_url: ", "/identity/v3"), first.url.clone()),
        (old("cacert: ", "").and_then(|path| serde_json::from_str(&path).ok()), authority),
    ]
    .into_iter()
    .filter_map(|(old, new)| Some((old.filter(|old| !old.is_empty() && *old != new)?, new)))
    .collect();
    if moved.is_empty() {
        return Ok(());
    }
    // The file that tells the old address comes last, so that a crash in between is made good by the next start.
    for name in ["openrc", "openrc-admin", "clouds.yaml"] {
        let path = data.join(name);
        if let Some(mut text) = read(&path)? {
            for (old, new) in &moved {
                text = text.replace(old, new);
            }
            write_private(&path, text.as_bytes())?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::internal(format!("{} cannot be read", path.display()), error)),
    }
}

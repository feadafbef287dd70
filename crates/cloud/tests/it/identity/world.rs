//! A cloud after its first start, with only the identity family in it.

use std::sync::Arc;

use nephos_auth::{Policy, password::Cost};
use nephos_cloud::{
    CloudCore, Handlers,
    identity::{self, Authority, FirstStart, Options, Printed, ProjectUse},
};
use nephos_ops::{
    Caller, Cloud, Context, Credentials, Operation,
    identity::{CreateAssignment, CreateDomain, CreateProject, CreateToken, CreateUser},
};
use nephos_store::{Kinds, Postgres, Sqlite, Store};
use nephos_types::{DomainId, Error, ProjectId, Result, Secret, UserId};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const PASSWORD: &str = "the administrator's own";
pub(crate) const URL: &str = "http://127.0.0.1:6780";

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) cloud: Cloud,
    pub(crate) printed: Option<Printed>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_uses(vec![]).await
    }

    pub(crate) async fn with_uses(uses: Vec<ProjectUse>) -> Self {
        Self::open(tempfile::tempdir().unwrap(), uses, Some(PASSWORD), Handlers::new()).await
    }

    pub(crate) async fn open(
        folder: TempDir,
        uses: Vec<ProjectUse>,
        password: Option<&str>,
        handlers: Handlers,
    ) -> Self {
        let backend = Sqlite::open(folder.path().join("nephos.db")).await.unwrap();
        let store = Store::open(backend, identity::kinds(Kinds::new())).await.unwrap();
        Self::on(store, folder, uses, password, handlers).await
    }

    /// Two processes on one PostgreSQL database, with the same keys.
    pub(crate) async fn pair() -> [Self; 2] {
        let database = nephos_testkit_postgres::shared().database();
        let open = async |folder| {
            let backend = Postgres::open(&database).await.unwrap();
            let store = Store::open(backend, identity::kinds(Kinds::new())).await.unwrap();
            Self::on(store, folder, vec![], Some(PASSWORD), Handlers::new()).await
        };
        let one = open(tempfile::tempdir().unwrap()).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("keys")).unwrap();
        for key in ["token", "vault"] {
            std::fs::copy(one.folder.path().join("keys").join(key), folder.path().join("keys").join(key)).unwrap();
        }
        [one, open(folder).await]
    }

    async fn on(
        store: Store,
        folder: TempDir,
        uses: Vec<ProjectUse>,
        password: Option<&str>,
        mut handlers: Handlers,
    ) -> Self {
        let options = Options { cost: Cost::Minimal, processes: |_| 2, ..Options::default() };
        let authority = Authority::open(store.clone(), folder.path(), options, uses).unwrap();
        let first = FirstStart {
            admin_password: password.map(secret),
            url: URL.to_owned(),
            authority: folder.path().join("ca.pem"),
        };
        let printed = identity::bootstrap(&authority, folder.path(), first).await.unwrap();
        identity::register(&mut handlers, &authority);
        let core = CloudCore::new(store.clone(), Arc::clone(&authority) as _, Policy::default(), handlers);
        Self { folder, store, authority, cloud: Cloud::new(Arc::new(core)), printed }
    }

    /// A call without credentials.
    pub(crate) fn anyone(&self) -> Context {
        self.from("192.0.2.7:4711", None)
    }

    pub(crate) fn from(&self, address: &str, identity: Option<Arc<nephos_ops::Identity>>) -> Context {
        self.cloud.context(Caller { identity, address: address.to_owned(), front_end: "test" })
    }

    /// A call with a token.
    pub(crate) async fn with(&self, token: &Secret) -> Result<Context> {
        let identity = self.cloud.identify(Credentials::Token(token.reveal().to_owned())).await?;
        Ok(self.from("192.0.2.7:4711", Some(identity)))
    }

    /// A new token.
    pub(crate) async fn token(&self, login: Value) -> Result<Secret> {
        Ok(self.anyone().call(input::<CreateToken>(login)).await?.token)
    }

    /// A call by somebody who logs in so.
    pub(crate) async fn log_in(&self, login: Value) -> Result<Context> {
        self.with(&self.token(login).await?).await
    }

    /// The administrator, on the system.
    pub(crate) async fn admin(&self) -> Context {
        self.log_in(json!({ "user": "admin", "password": PASSWORD, "system": true })).await.unwrap()
    }

    /// A user with the password `<name>'s password`, and optionally a role on something.
    pub(crate) async fn user(&self, name: &str, domain: &str, role: Option<Value>) -> UserId {
        let admin = self.admin().await;
        let password = password_of(name);
        let new = json!({ "name": name, "domain": domain, "password": password });
        let id = admin.call(input::<CreateUser>(new)).await.unwrap().id;
        if let Some(role) = role {
            self.give(name, domain, role).await;
        }
        id
    }

    /// Gives a role: `{ "role": …, "project": … }`.
    pub(crate) async fn give(&self, user: &str, domain: &str, mut role: Value) {
        role["user"] = user.into();
        role["actor_domain"] = domain.into();
        self.admin().await.call(input::<CreateAssignment>(role)).await.unwrap();
    }

    pub(crate) async fn domain(&self, name: &str) -> DomainId {
        self.admin().await.call(input::<CreateDomain>(json!({ "name": name }))).await.unwrap().id
    }

    pub(crate) async fn project(&self, name: &str, domain: &str) -> ProjectId {
        let new = json!({ "name": name, "domain": domain });
        self.admin().await.call(input::<CreateProject>(new)).await.unwrap().id
    }
}

pub(crate) fn password_of(name: &str) -> String {
    format!("{name}'s password")
}

pub(crate) fn secret(text: &str) -> Secret {
    text.parse().unwrap()
}

/// An operation's input from JSON.
pub(crate) fn input<O: Operation>(value: Value) -> O {
    serde_json::from_value(value).unwrap()
}

/// The code of a refusal.
pub(crate) fn code<T>(result: Result<T>) -> String {
    result.map(|_| ()).map_or_else(|error: Error| error.code.into_owned(), |()| "ok".to_owned())
}

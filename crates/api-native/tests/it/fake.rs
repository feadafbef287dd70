//! A fake core, operations of every kind of answer, a server in front of both, and a client.

use std::{
    any::{Any, TypeId},
    collections::BTreeSet,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use nephos_api_native::{Native, Settings};
use nephos_http::rate::{Limiter, Rates};
use nephos_ops::{
    AnswerKind, Cloud, Context, Core, Credentials, Download, Effect, Entry, Event, EventStream, Identity, Login,
    Method, Operation, Permission, Scope, Spec, Started, Tunnel, View,
};
use nephos_types::{DomainId, Error, ErrorKind, Name, ProjectId, Result, Timestamp, UserId, WorkflowId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What [`Echo`] answers with.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Echoed {
    pub(crate) thing: String,
    pub(crate) count: Option<u64>,
    pub(crate) tags: Vec<String>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) actor: Option<String>,
    pub(crate) request: String,
}
impl View for Echoed {}

macro_rules! operation {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* $(,)? } -> $output:ty, $spec:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name { $($(#[$attribute])* pub(crate) $field: $type),* }
        impl Operation for $name {
            type Output = $output;
            const SPEC: Spec = $spec;
        }
    };
}

operation!(
    /// Answers with what it was given.
    Echo {
        /// What.
        thing: Name,
        /// How many.
        #[serde(default)]
        #[schemars(range(max = 1000))]
        count: Option<u64>,
        /// Which.
        #[serde(default)]
        #[schemars(length(max = 3))]
        tags: Vec<String>,
    } -> Echoed,
    Spec { name: "probe.echo", path: "/v1/probes/{thing}/echo", permission: Permission::LOGGED_IN, summary: "Echo", ..Spec::DEFAULT }
);
operation!(
    /// Starts something.
    Start {
        /// What.
        thing: Name,
        /// How many.
        #[serde(default)]
        count: Option<u64>,
    } -> Started<Echoed>,
    Spec { name: "probe.start", method: Method::Post, path: "/v1/probes", permission: Permission::LOGGED_IN, effect: Effect::Creates, summary: "Start", ..Spec::DEFAULT }
);
operation!(
    /// Needs no login.
    Greet {} -> Echoed,
    Spec { name: "probe.greet", path: "/v1/probes", permission: Permission::ANYONE, summary: "Greet", ..Spec::DEFAULT }
);
operation!(
    /// Streams bytes out.
    Fetch {
        /// What.
        thing: Name,
    } -> Download,
    Spec { name: "probe.fetch", path: "/v1/probes/{thing}/data", permission: Permission::LOGGED_IN, summary: "Fetch", ..Spec::DEFAULT }
);
operation!(
    /// Streams bytes in, and answers with their number.
    Store {
        /// What.
        thing: Name,
    } -> Echoed,
    Spec { name: "probe.store", method: Method::Put, path: "/v1/probes/{thing}/data", permission: Permission::LOGGED_IN, effect: Effect::Changes, upload: true, summary: "Store", ..Spec::DEFAULT }
);
operation!(
    /// Streams events.
    Watch {
        /// From where.
        #[serde(default)]
        from: Option<u64>,
    } -> EventStream,
    Spec { name: "probe.watch", path: "/v1/probe-events", permission: Permission::LOGGED_IN, summary: "Watch", ..Spec::DEFAULT }
);
operation!(
    /// Returns every byte.
    Connect {} -> Tunnel,
    Spec { name: "probe.connect", path: "/v1/probe-console", permission: Permission::LOGGED_IN, summary: "Connect", ..Spec::DEFAULT }
);
operation!(
    /// Fails in the way it is told to.
    Fail {
        /// The kind of error; `panic` panics.
        kind: String,
    } -> (),
    Spec { name: "probe.fail", method: Method::Post, path: "/v1/probes/fail", permission: Permission::LOGGED_IN, effect: Effect::Changes, summary: "Fail", ..Spec::DEFAULT }
);

/// The probes.
static PROBES: &[Entry] = &[
    Entry::of::<Echo>(),
    Entry::of::<Start>(),
    Entry::of::<Greet>(),
    Entry::of::<Fetch>(),
    Entry::of::<Store>(),
    Entry::of::<Watch>(),
    Entry::of::<Connect>(),
    Entry::of::<Fail>(),
];

/// Every operation there is, then the probes.
pub(crate) static TABLE: LazyLock<Vec<Entry>> =
    LazyLock::new(|| nephos_ops::table().iter().chain(PROBES).copied().collect());

/// The token that is good.
pub(crate) const TOKEN: &str = "good-token";

/// Answers the probes; all other operations with [`REACHED`].
pub(crate) struct Fake {
    identity: Arc<Identity>,
    /// Names of the operations that were reached, in order.
    pub(crate) reached: Mutex<Vec<&'static str>>,
}

/// The code with which operations other than probes are answered.
pub(crate) const REACHED: &str = "reached_the_core";

impl Core for Fake {
    fn identify<'a>(
        &'a self,
        Credentials::Token(token): Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Identity>>> + Send + 'a>> {
        let outcome = if token == TOKEN {
            Ok(self.identity.clone())
        } else {
            Err(Error::new(ErrorKind::Unauthenticated, "invalid_token", "This token is not valid"))
        };
        Box::pin(std::future::ready(outcome))
    }

    fn call(
        &self,
        operation: TypeId,
        context: Context,
        input: Box<dyn Any + Send>,
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn Any + Send>>> + Send + '_>> {
        let entry = TABLE.iter().find(|entry| (entry.type_id)() == operation).expect("an operation of the table");
        self.reached.lock().unwrap().push(entry.spec.name);
        Box::pin(async move {
            let echoed = |thing: &str, count, tags| Echoed {
                thing: thing.to_owned(),
                count,
                tags,
                idempotency_key: context.idempotency_key.clone(),
                actor: context.caller.identity.as_ref().map(|identity| identity.user_name.to_string()),
                request: context.request.to_string(),
            };
            let output: Box<dyn Any + Send> = match entry.spec.name {
                "probe.echo" => {
                    let input = input.downcast::<Echo>().expect("its input");
                    Box::new(echoed(input.thing.as_str(), input.count, input.tags))
                }
                "probe.greet" => Box::new(echoed("hello", None, vec![])),
                "probe.start" => {
                    let input = input.downcast::<Start>().expect("its input");
                    let resource = echoed(input.thing.as_str(), input.count, vec![]);
                    Box::new(Started { workflow: WorkflowId::new(), resource })
                }
                "probe.store" => {
                    let body = context.take_upload().expect("a body");
                    let count = body.try_fold(0, |sum, bytes| async move { Ok(sum + bytes.len() as u64) }).await;
                    let count = count.map_err(|error| Error::internal("upload", error))?;
                    Box::new(echoed("stored", Some(count), vec![]))
                }
                "probe.watch" => {
                    let from = input.downcast::<Watch>().expect("its input").from.unwrap_or(0);
                    let events = stream::iter(from..).map(|number| {
                        Ok(Event { id: Some((number + 1).to_string()), name: "tick".into(), data: number.to_string() })
                    });
                    // Three events, then silence.
                    Box::new(EventStream(Box::pin(events.take(3).chain(stream::pending()))))
                }
                "probe.fail" => {
                    let kind = input.downcast::<Fail>().expect("its input").kind;
                    assert!(kind != "panic", "told to");
                    if kind == "none" {
                        return Ok(Box::new(()) as Box<dyn Any + Send>);
                    }
                    let kind: ErrorKind = serde_json::from_value(Value::String(kind)).expect("a kind");
                    return Err(Error::new(kind, "told_to", "Told to fail").detail("by a test"));
                }
                _ => match entry.answer {
                    AnswerKind::Download => Box::new(Download {
                        body: Box::pin(stream::iter([
                            Ok(Bytes::from_static(b"some ")),
                            Ok(Bytes::from_static(b"data")),
                        ])),
                        length: Some(9),
                        content_type: "application/octet-stream",
                    }),
                    AnswerKind::Tunnel => {
                        let (near, far) = tokio::io::duplex(1024);
                        tokio::spawn(async move {
                            let (mut reader, mut writer) = tokio::io::split(far);
                            let _ = tokio::io::copy(&mut reader, &mut writer).await;
                        });
                        Box::new(Tunnel(Box::new(near)))
                    }
                    _ => return Err(Error::new(ErrorKind::Unsupported, REACHED, "Reached the core")),
                },
            };
            Ok(output)
        })
    }
}

/// A server with the native front end in front of a fake core, on a free port.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) core: Arc<Fake>,
    pub(crate) server: nephos_http::Server,
    client: HttpClient<HttpConnector, Full<Bytes>>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error's code; checks that the error has the one shape.
    pub(crate) fn code(&self) -> String {
        let document = self.json();
        let error = &document["error"];
        assert_eq!(error["request_id"], self.headers[nephos_http::REQUEST_ID].to_str().unwrap(), "{self:?}");
        for field in ["code", "kind", "title"] {
            assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {self:?}");
        }
        assert!(error["retryable"].is_boolean(), "{self:?}");
        error["code"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn start() -> Running {
    start_with(Settings::default(), Rates::default()).await
}

pub(crate) async fn start_with(settings: Settings, rates: Rates) -> Running {
    let core = Arc::new(Fake {
        identity: Arc::new(Identity {
            user: UserId::new(),
            user_name: "ada".parse().unwrap(),
            user_domain: DomainId::new(),
            scope: Scope::Project { id: ProjectId::new(), name: "demo".parse().unwrap(), domain: DomainId::new() },
            roles: BTreeSet::from(["admin".to_owned()]),
            issued_at: Timestamp::now(),
            expires_at: Timestamp::now().plus(Duration::from_secs(3600)),
            login: Login::default(),
        }),
        reached: Mutex::default(),
    });
    let native = Native::new(&TABLE, Cloud::new(core.clone()), Arc::new(Limiter::new(rates)), settings).unwrap();
    let server = nephos_http::Server::new(nephos_http::Settings::default(), vec![Arc::new(native)], None).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener, None).await.unwrap() });
    Running { address, core, server, client: HttpClient::builder(TokioExecutor::new()).build_http() }
}

impl Running {
    /// Sends a request with these headers.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answered {
        let (parts, body) = self.request(method, path, headers, body.into()).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answered { status: parts.status, headers: parts.headers, body }
    }

    /// Sends a request without a body, and leaves the answer's body to be read.
    pub(crate) async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        self.request(method, path, headers, Bytes::new()).await
    }

    async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(Full::new(body)).unwrap()).await.unwrap()
    }

    /// Sends a request with a good token, and JSON if there is a body.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answered {
        let bearer = format!("Bearer {TOKEN}");
        let mut headers = vec![("authorization", bearer.as_str())];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        self.send(method, path, &headers, body.to_owned()).await
    }
}

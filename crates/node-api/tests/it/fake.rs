//! A control plane that notes what it is asked.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::stream;
use nephos_node_api::{
    Boxed, Client, Content, ControlPlane, Desired, Duplex, Enrolment, EnrolmentAnswer, Hello, HelloAnswer, Renewal,
    Report, SnapshotHeader, client::Local,
};
use nephos_types::{Error, ErrorKind, ImageId, NodeId, Result, StreamId};
use tokio::{io::AsyncWriteExt, sync::watch};
use tokio_util::sync::CancellationToken;

pub(crate) struct Fake {
    /// What was asked, in words.
    pub(crate) asked: Mutex<Vec<String>>,
    /// The revision of what should be.
    pub(crate) revision: watch::Sender<u64>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { asked: Mutex::default(), revision: watch::Sender::new(1) })
    }

    fn note(&self, words: String) {
        self.asked.lock().unwrap().push(words);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// A node within this process.
pub(crate) fn local(fake: &Arc<Fake>, node: NodeId) -> Client {
    Client::new(Arc::new(Local::new(node, fake.clone(), CancellationToken::new())))
}

fn answer() -> EnrolmentAnswer {
    EnrolmentAnswer { node: NodeId::new(), certificate: "certificate".to_owned(), authority: "authority".to_owned() }
}

impl ControlPlane for Fake {
    fn enrol(&self, _: String, enrolment: Enrolment) -> Boxed<'_, EnrolmentAnswer> {
        self.note(format!("enrol {}", enrolment.name));
        let known = enrolment.token == "good";
        Box::pin(async move {
            if known { Ok(answer()) } else { Err(Error::new(ErrorKind::Unauthenticated, "join_token_refused", "No")) }
        })
    }

    fn hello(&self, node: NodeId, address: String, hello: Hello) -> Boxed<'_, HelloAnswer> {
        self.note(format!("hello {node} from {address}"));
        Box::pin(
            async move { Ok(HelloAnswer { protocol: hello.protocol, node, report_every_ms: 3000, usage_every_ms: 0 }) },
        )
    }

    fn desired(&self, _: NodeId, after: Option<u64>, wait: Duration) -> Boxed<'_, Desired> {
        self.note(format!("desired after {after:?} within {} ms", wait.as_millis()));
        Box::pin(async move {
            let mut revision = self.revision.subscribe();
            let _ = tokio::time::timeout(wait, revision.wait_for(|revision| Some(*revision) != after)).await;
            let revision = *revision.borrow();
            Ok(Desired { revision, ..Desired::default() })
        })
    }

    fn report(&self, node: NodeId, _: String, report: Report) -> Boxed<'_, ()> {
        self.note(format!("report of {} by {node}", report.servers.len()));
        Box::pin(async { Ok(()) })
    }

    fn renew(&self, node: NodeId, _: Renewal) -> Boxed<'_, EnrolmentAnswer> {
        self.note(format!("renew {node}"));
        Box::pin(async { Ok(answer()) })
    }

    fn image(&self, _: NodeId, image: ImageId) -> Boxed<'_, Content> {
        Box::pin(async move {
            let parts = [Ok("some ".into()), Ok(image.to_string().into())];
            let length = 5 + image.to_string().len() as u64;
            Ok(Content { length, body: Box::pin(stream::iter(parts)) })
        })
    }

    fn program(&self, _: NodeId, sha256: String) -> Boxed<'_, Content> {
        Box::pin(async move {
            let length = sha256.len() as u64;
            Ok(Content { length, body: Box::pin(stream::iter([Ok(sha256.into())])) })
        })
    }

    fn snapshot(&self, _: NodeId, image: ImageId, _: SnapshotHeader, _: Content) -> Boxed<'_, ()> {
        Box::pin(async move { Err(Error::not_found("image", image)) })
    }

    fn accept_stream(&self, node: NodeId, stream: StreamId, mut duplex: Box<dyn Duplex>) -> Boxed<'_, ()> {
        self.note(format!("stream {stream} of {node}"));
        Box::pin(async move {
            let wrong = |error| Error::internal("the stream broke", error);
            duplex.write_all(b"hello").await.map_err(wrong)?;
            // Whatever comes goes back.
            let (mut read, mut write) = tokio::io::split(duplex);
            tokio::io::copy(&mut read, &mut write).await.map_err(wrong)?;
            Result::Ok(())
        })
    }

    fn refuse_stream(&self, _: NodeId, stream: StreamId, error: Error) -> Boxed<'_, ()> {
        self.note(format!("refused {stream}: {}", error.code));
        Box::pin(async { Ok(()) })
    }
}

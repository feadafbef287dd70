//! What the control plane offers to nodes.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use nephos_types::{Error, ImageId, NodeId, Result, StreamId};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::message::{Desired, Enrolment, EnrolmentAnswer, Hello, HelloAnswer, Renewal, Report, SnapshotHeader};

/// What object-safe methods return.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A stream of body bytes.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Both directions of a byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Bytes of a known length.
pub struct Content {
    /// How many bytes `body` yields.
    pub length: u64,
    /// The bytes.
    pub body: ByteStream,
}

/// What nodes may ask of the control plane. Implemented by `cloud`, and by fakes in tests.
///
/// Every method but [`enrol`](Self::enrol) is called with the id that the transport has proved; whether that node
/// (still) belongs to the cloud is for the implementation to check.
pub trait ControlPlane: Send + Sync + 'static {
    /// Turns a machine with a valid token into a node. `address` is where it calls from.
    fn enrol(&self, address: String, enrolment: Enrolment) -> Boxed<'_, EnrolmentAnswer>;

    /// A node's agent has started, or its inventory has changed.
    fn hello(&self, node: NodeId, address: String, hello: Hello) -> Boxed<'_, HelloAnswer>;

    /// What the node should run. Answers at once if the current revision differs from `after`, otherwise when it
    /// changes, and after `wait` at the latest.
    fn desired(&self, node: NodeId, after: Option<u64>, wait: Duration) -> Boxed<'_, Desired>;

    /// What the node is. `address` is where it calls from. Refused with code [`HELLO_FIRST`] if the control plane has not heard the node's hello since
    /// it started itself.
    fn report(&self, node: NodeId, address: String, report: Report) -> Boxed<'_, ()>;

    /// A new certificate for a node that proved to hold its present one, even if that has expired.
    fn renew(&self, node: NodeId, renewal: Renewal) -> Boxed<'_, EnrolmentAnswer>;

    /// The bytes of an image.
    fn image(&self, node: NodeId, image: ImageId) -> Boxed<'_, Content>;

    /// The bytes of the program with this SHA-256 that the node's agent should be.
    fn program(&self, node: NodeId, sha256: String) -> Boxed<'_, Content>;

    /// The bytes of a copy of a server's root disk that the node was asked for. Can be repeated: whatever came of an
    /// earlier call, once this returns the image has its content.
    fn snapshot(&self, node: NodeId, image: ImageId, header: SnapshotHeader, content: Content) -> Boxed<'_, ()>;

    /// The node has dialled a stream that somebody waits for. Returns when nobody needs it any more.
    fn accept_stream(&self, node: NodeId, stream: StreamId, duplex: Box<dyn Duplex>) -> Boxed<'_, ()>;

    /// The node cannot open a stream that somebody waits for.
    fn refuse_stream(&self, node: NodeId, stream: StreamId, error: Error) -> Boxed<'_, ()>;
}

/// Error code of a report that came before the node's hello.
pub const HELLO_FIRST: &str = "hello_first";

/// Error code for a node that is not, or no longer, part of the cloud.
pub const NODE_REMOVED: &str = "node_removed";

//! What servers use.

use nephos_types::{Bytes, Number, Page, Reference, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Example, Method, Operation, Permission, Spec},
};

/// How close together samples are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageResolution {
    /// A second; the last hour is kept.
    #[default]
    Second,
    /// A minute; the last week is kept.
    Minute,
}

/// What a server has used.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListUsage {
    /// Name or id.
    pub server: Reference,
    /// How close together samples are.
    #[serde(default)]
    pub resolution: UsageResolution,
    /// Nothing before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Nothing after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The newest so many, 1 to 10080; 60 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 10_080>>,
}

/// What a server used in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServerUsage {
    /// When the interval ended, by the node's clock.
    pub at: Timestamp,
    /// Its length.
    pub seconds: f64,
    /// CPU time used in it.
    pub cpu_seconds: f64,
    /// The same as a share: 100 is one CPU busy all the time.
    pub cpu_percent: f64,
    /// Memory of the node in use at its end.
    pub memory_bytes: Bytes,
    /// Read from its disks.
    pub disk_read_bytes: Bytes,
    /// Written to its disks.
    pub disk_written_bytes: Bytes,
    /// Read requests.
    pub disk_reads: u64,
    /// Write requests.
    pub disk_writes: u64,
    /// Received by its network interfaces.
    pub network_received_bytes: Bytes,
    /// Sent by them.
    pub network_sent_bytes: Bytes,
    /// Packets received.
    pub packets_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
}
impl View for ServerUsage {}

impl Operation for ListUsage {
    type Output = Page<ServerUsage>;
    const SPEC: Spec = Spec {
        name: "server.usage",
        method: Method::Get,
        path: "/v1/servers/{server}/usage",
        permission: Permission::PROJECT_READER,
        summary: "What a server used of CPU, memory, disk and network, oldest first",
        description: "A server's node measures it and keeps the samples. A virtual machine on user-mode networking has \
            no figures for its network.",
        positional: &["server"],
        columns: &[
            "at",
            "cpu_percent",
            "memory_bytes",
            "disk_read_bytes",
            "disk_written_bytes",
            "network_received_bytes",
            "network_sent_bytes",
        ],
        examples: &[
            Example { title: "The last minute", command: "nephos server usage web-1" },
            Example {
                title: "The last day, minute by minute",
                command: "nephos server usage web-1 --resolution minute --limit 1440",
            },
            Example { title: "As it goes", command: "nephos server usage web-1 --limit 10 --watch" },
        ],
        ..Spec::DEFAULT
    };
}

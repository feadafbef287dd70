//! Operations on key pairs: SSH public keys that are put into servers. Private keys never reach the cloud.

use nephos_types::{KeyPairId, Name, Number, Page, Reference, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// An SSH public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyPair {
    /// Its id.
    pub id: KeyPairId,
    /// Its name, unique among the user's keys.
    pub name: Name,
    /// The key as in `authorized_keys`.
    pub public_key: String,
    /// SHA-256 fingerprint as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// When it was added.
    pub created_at: Timestamp,
}
impl View for KeyPair {}

const COLUMNS: &[&str] = &["name", "fingerprint", "created_at"];

/// Add an SSH public key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKeyPair {
    /// Name, unique among your keys.
    pub name: Name,
    /// One line as in `authorized_keys`, e.g. the content of `~/.ssh/id_ed25519.pub`.
    pub public_key: Text<16384>,
}
impl Operation for CreateKeyPair {
    type Output = KeyPair;
    const SPEC: Spec = Spec {
        name: "keypair.create",
        method: Method::Post,
        path: "/v1/keypairs",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Add an SSH public key that servers can be created with",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example {
            title: "The key of this machine",
            command: "nephos keypair create laptop --public-key \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJmb28gYmFyIGJheiBxdXggcXV1eCBjb3JnZSBn me@laptop\"",
        }],
        ..Spec::DEFAULT
    };
}

/// List one's SSH public keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListKeyPairs {
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<KeyPairId>,
}
impl Operation for ListKeyPairs {
    type Output = Page<KeyPair>;
    const SPEC: Spec = Spec {
        name: "keypair.list",
        method: Method::Get,
        path: "/v1/keypairs",
        permission: Permission::PROJECT_READER,
        summary: "List your SSH public keys",
        columns: COLUMNS,
        examples: &[Example { title: "All of them", command: "nephos keypair list" }],
        ..Spec::DEFAULT
    };
}

/// Show an SSH public key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowKeyPair {
    /// Name or id.
    pub keypair: Reference,
}
impl Operation for ShowKeyPair {
    type Output = KeyPair;
    const SPEC: Spec = Spec {
        name: "keypair.show",
        method: Method::Get,
        path: "/v1/keypairs/{keypair}",
        permission: Permission::PROJECT_READER,
        summary: "Show one of your SSH public keys",
        positional: &["keypair"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos keypair show laptop" }],
        ..Spec::DEFAULT
    };
}

/// Delete an SSH public key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteKeyPair {
    /// Name or id.
    pub keypair: Reference,
}
impl Operation for DeleteKeyPair {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "keypair.delete",
        method: Method::Delete,
        path: "/v1/keypairs/{keypair}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete one of your SSH public keys",
        description: "Servers that were created with it keep it.",
        positional: &["keypair"],
        examples: &[Example { title: "By name", command: "nephos keypair delete laptop" }],
        ..Spec::DEFAULT
    };
}

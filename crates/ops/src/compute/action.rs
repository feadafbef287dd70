//! What can be done to a server beyond making, starting and stopping it.

use nephos_types::{Labels, Name, Reference, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::server::{SERVER_COLUMNS as COLUMNS, Server};
use crate::{
    call::Started,
    image::Image,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// What most actions have in common.
const ACTION: Spec = Spec {
    method: Method::Post,
    permission: Permission::PROJECT_MEMBER,
    effect: Effect::Changes,
    positional: &["server"],
    columns: COLUMNS,
    ..Spec::DEFAULT
};

macro_rules! action {
    ($(#[$doc:meta])* $type:ident => $output:ty, { $($spec:tt)* }) => {
        action! { $(#[$doc])* $type {} => $output, { $($spec)* } }
    };
    ($(#[$doc:meta])* $type:ident { $($(#[$field_doc:meta])* $field:ident: $field_type:ty,)* } => $output:ty, { $($spec:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $type {
            /// Name or id.
            pub server: Reference,
            $($(#[$field_doc])* pub $field: $field_type,)*
        }
        impl Operation for $type {
            type Output = $output;
            const SPEC: Spec = Spec { $($spec)* ..ACTION };
        }
    };
}

action! {
    /// Let a server stand still.
    PauseServer => Started<Server>, {
        name: "server.pause",
        path: "/v1/servers/{server}/pause",
        summary: "Let a running server stand still, in memory",
        examples: &[Example { title: "By name", command: "nephos server pause web-1" }],
    }
}

action! {
    /// Let a paused server go on.
    UnpauseServer => Started<Server>, {
        name: "server.unpause",
        path: "/v1/servers/{server}/unpause",
        summary: "Let a paused server go on",
        examples: &[Example { title: "By name", command: "nephos server unpause web-1" }],
    }
}

action! {
    /// Save a server's memory to the disk and end it.
    SuspendServer => Started<Server>, {
        name: "server.suspend",
        path: "/v1/servers/{server}/suspend",
        summary: "Save a running server's memory to the disk of its node and end it",
        description: "It goes on from there when it is resumed, and keeps its place on the node.",
        examples: &[Example { title: "By name", command: "nephos server suspend web-1" }],
    }
}

action! {
    /// Let a suspended server go on.
    ResumeServer => Started<Server>, {
        name: "server.resume",
        path: "/v1/servers/{server}/resume",
        summary: "Let a suspended server go on",
        examples: &[Example { title: "By name", command: "nephos server resume web-1" }],
    }
}

action! {
    /// Give a server a new root disk.
    RebuildServer {
        /// Name or id of the image for the new disk; the present one's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Reference>,
        /// What the server's first-boot software is given instead of what it was given before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_data: Option<Text<65535>>,
    } => Started<Server>, {
        name: "server.rebuild",
        path: "/v1/servers/{server}/rebuild",
        summary: "Throw a server's root disk away and give it a new one",
        description: "It keeps its id, name, size, place and addresses. What was on the disk is lost.",
        examples: &[
            Example { title: "As it was at first", command: "nephos server rebuild web-1" },
            Example { title: "From another image", command: "nephos server rebuild web-1 --image micro" },
        ],
    }
}

action! {
    /// Give a server another size.
    ResizeServer {
        /// Name or id of the flavor.
        flavor: Reference,
    } => Started<Server>, {
        name: "server.resize",
        path: "/v1/servers/{server}/resize",
        summary: "Give a server another size, to be confirmed or reverted",
        description: "A running server is shut down and started again, unless only its disk grows and its node can do that \
            meanwhile. Room for both sizes is kept until the resize is confirmed or reverted; it confirms itself after the \
            time that the operator has set. A disk can grow, and not shrink. If the server's node has no room for the new \
            size, or is not what the flavor asks for, the server goes to another node with its disk, and room is kept on \
            both.",
        examples: &[Example { title: "More of everything", command: "nephos server resize web-1 --flavor medium" }],
    }
}

action! {
    /// Keep a server's new size.
    ConfirmResize => Server, {
        name: "server.confirm-resize",
        path: "/v1/servers/{server}/confirm-resize",
        summary: "Keep a server's new size and give up the old one",
        examples: &[Example { title: "By name", command: "nephos server confirm-resize web-1" }],
    }
}

action! {
    /// Give a server its old size back.
    RevertResize => Started<Server>, {
        name: "server.revert-resize",
        path: "/v1/servers/{server}/revert-resize",
        summary: "Give a resized server its old size back",
        description: "A disk that has grown stays as large as it is. A server that the resize has brought to another node \
            goes back with its disk as it is now. If its old node is down, out of service, or has no room for what the disk \
            has grown, it gets its old size where it is.",
        examples: &[Example { title: "By name", command: "nephos server revert-resize web-1" }],
    }
}

fn yes() -> bool {
    true
}

action! {
    /// Make an image of a server's root disk.
    SnapshotServer {
        /// Name of the image, unique in the project.
        name: Name,
        /// Have the server hold its file systems still meanwhile, if it has an agent that can be asked.
        #[serde(default = "yes")]
        freeze: bool,
        /// Labels of the image.
        #[serde(default, skip_serializing_if = "Labels::is_empty")]
        labels: Labels,
    } => Started<Image>, {
        name: "server.snapshot",
        path: "/v1/servers/{server}/snapshot",
        effect: Effect::Creates,
        summary: "Make an image of a server's root disk",
        description: "As the disk is at one moment. The server goes on meanwhile.",
        columns: &["name", "status", "format", "size", "visibility", "id"],
        examples: &[Example { title: "Of a running server", command: "nephos server snapshot web-1 --name web-1-monday" }],
    }
}

action! {
    /// Boot a server from a rescue image.
    RescueServer {
        /// Name or id of the image to boot from; the one that the server was made from when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Reference>,
    } => Started<Server>, {
        name: "server.rescue",
        path: "/v1/servers/{server}/rescue",
        summary: "Boot a server from a throw-away copy of an image, with its own disk as the second one",
        examples: &[Example { title: "To repair its disk", command: "nephos server rescue web-1 --image micro" }],
    }
}

action! {
    /// Boot a rescued server from its own disk again.
    UnrescueServer => Started<Server>, {
        name: "server.unrescue",
        path: "/v1/servers/{server}/unrescue",
        summary: "Boot a rescued server from its own disk again",
        examples: &[Example { title: "By name", command: "nephos server unrescue web-1" }],
    }
}

action! {
    /// Put a server away.
    ShelveServer => Started<Server>, {
        name: "server.shelve",
        path: "/v1/servers/{server}/shelve",
        summary: "Put a server away as an image and give its node's room back",
        description: "It keeps its id, name and quota, and comes back wherever there is room then.",
        examples: &[Example { title: "By name", command: "nephos server shelve web-1" }],
    }
}

action! {
    /// Bring a shelved server back.
    UnshelveServer => Started<Server>, {
        name: "server.unshelve",
        path: "/v1/servers/{server}/unshelve",
        summary: "Bring a shelved server back and start it",
        examples: &[Example { title: "By name", command: "nephos server unshelve web-1" }],
    }
}

action! {
    /// Refuse changes of a server.
    LockServer {
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Text<255>>,
    } => Server, {
        name: "server.lock",
        path: "/v1/servers/{server}/lock",
        summary: "Refuse whatever would change a server, except by an administrator",
        description: "What an administrator has locked, only an administrator unlocks.",
        examples: &[Example { title: "During an audit", command: "nephos server lock web-1 --reason audit" }],
    }
}

action! {
    /// Allow changes of a server again.
    UnlockServer => Server, {
        name: "server.unlock",
        path: "/v1/servers/{server}/unlock",
        summary: "Allow changes of a locked server again",
        examples: &[Example { title: "By name", command: "nephos server unlock web-1" }],
    }
}

action! {
    /// Take a server out of the trash.
    RestoreServer => Started<Server>, {
        name: "server.restore",
        path: "/v1/servers/{server}/restore",
        summary: "Take a deleted server out of the trash",
        examples: &[Example { title: "By name", command: "nephos server restore web-1" }],
    }
}

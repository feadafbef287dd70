//! What an operation is, and the table of all of them.

use std::{any::TypeId, future::Future, pin::Pin};

use nephos_types::{Error, ErrorKind, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::call::{Answer, AnswerKind, Context, Reply};

/// HTTP method of an operation's native route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// The method as on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Keystone's default roles, each implying those before it; `Service` stands beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May look.
    Reader,
    /// May use.
    Member,
    /// May manage people and quotas within the scope.
    Manager,
    /// May do everything, everywhere (as in Keystone, whatever scope it was given on).
    Admin,
    /// May do what one service asks of another.
    Service,
}

impl Role {
    /// The role's name in assignments and tokens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Member => "member",
            Self::Manager => "manager",
            Self::Admin => "admin",
            Self::Service => "service",
        }
    }
}

/// One way to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Without logging in.
    Anyone,
    /// With any valid token, whatever its scope.
    LoggedIn,
    /// With a token scoped to a project on which one has the role; sees that project only.
    Project(Role),
    /// With a token scoped to a domain on which one has the role; sees that domain only.
    Domain(Role),
    /// With a token scoped to the system, with the role; sees everything.
    System(Role),
}

/// Who may call: any of the grants suffices, and the role `admin` always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission(pub &'static [Grant]);

impl Permission {
    /// Without logging in.
    pub const ANYONE: Self = Self(&[Grant::Anyone]);
    /// With any valid token.
    pub const LOGGED_IN: Self = Self(&[Grant::LoggedIn]);
    /// To look at a project's resources.
    pub const PROJECT_READER: Self = Self(&[Grant::Project(Role::Reader), Grant::System(Role::Reader)]);
    /// To change a project's resources.
    pub const PROJECT_MEMBER: Self = Self(&[Grant::Project(Role::Member)]);
    /// To look at what belongs to the cloud as a whole.
    pub const SYSTEM_READER: Self = Self(&[Grant::System(Role::Reader)]);
    /// To change what belongs to the cloud as a whole.
    pub const SYSTEM_ADMIN: Self = Self(&[Grant::System(Role::Admin)]);
}

/// What calling does; decides about idempotency keys and what a client may repeat by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Changes nothing.
    Reads,
    /// Brings a resource into a state; repeating it changes nothing more.
    Changes,
    /// Makes something new each time: takes an idempotency key.
    Creates,
    /// Does something each time, e.g. runs a program: a client does not repeat it by itself.
    Acts,
}

/// A command line that the test-suite runs.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// What it is for.
    pub title: &'static str,
    /// The line, starting with `nephos`.
    pub command: &'static str,
}

/// The definition of an operation, except for its input and output types.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// `noun.verb`, e.g. `server.create`; also the XML-RPC method; the CLI command is `nephos server create`.
    pub name: &'static str,
    /// Method of the native route.
    pub method: Method,
    /// Path of the native route; `{field}` parts are filled from (and into) the input's fields. Of the other fields,
    /// GET and DELETE take them from the query, the rest from a JSON object in the body.
    pub path: &'static str,
    /// Who may call.
    pub permission: Permission,
    /// What calling does.
    pub effect: Effect,
    /// One line of help.
    pub summary: &'static str,
    /// More help; may be empty.
    pub description: &'static str,
    /// Input fields that the CLI takes by position, in this order; the rest become flags.
    pub positional: &'static [&'static str],
    /// Input fields that are seldom used: the CLI's short help leaves their flags out.
    pub seldom: &'static [&'static str],
    /// Columns that the CLI's table shows for (lists of) this output.
    pub columns: &'static [&'static str],
    /// Command lines that work.
    pub examples: &'static [Example],
    /// The request's body is a byte stream (the other fields come from path and query).
    pub upload: bool,
}

impl Spec {
    /// What most operations leave as it is. Name, path and summary are empty on purpose: the table's test refuses
    /// an operation that did not set them.
    pub const DEFAULT: Self = Self {
        name: "",
        method: Method::Get,
        path: "",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Reads,
        summary: "",
        description: "",
        positional: &[],
        seldom: &[],
        columns: &[],
        examples: &[],
        upload: false,
    };

    /// `server` of `server.create`.
    #[must_use]
    pub fn noun(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(noun, _)| noun)
    }

    /// `create` of `server.create`.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(_, verb)| verb)
    }

    /// The input fields that appear in the path.
    pub fn path_fields(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{').and_then(|part| part.strip_suffix('}')))
    }
}

/// Something that can be done. The implementing type is the input.
pub trait Operation: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// What comes back.
    type Output: Reply;
    /// Everything else about it.
    const SPEC: Spec;
}

type Future_<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One row of the table: an operation with its types erased.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its definition.
    pub spec: Spec,
    /// What kind of answer it gives.
    pub answer: AnswerKind,
    /// JSON schema of the input (an object).
    pub input: fn(&mut SchemaGenerator) -> Schema,
    /// JSON schema of the answer's JSON; `None` if it has none.
    pub output: fn(&mut SchemaGenerator) -> Option<Schema>,
    /// The input's type, by which the core finds the handler.
    pub type_id: fn() -> TypeId,
    /// Parses the JSON input, calls the operation, renders the answer.
    pub call: fn(Context, Value) -> Future_<Result<Answer>>,
}

impl Entry {
    /// The row of this operation.
    #[must_use]
    pub const fn of<O: Operation>() -> Self {
        Self {
            spec: O::SPEC,
            answer: O::Output::KIND,
            input: |generator| generator.subschema_for::<O>(),
            output: O::Output::schema,
            type_id: TypeId::of::<O>,
            call: |context, input| {
                Box::pin(async move {
                    let input = parse::<O>(input)?;
                    context.call(input).await?.into_answer()
                })
            },
        }
    }
}

/// Parses an operation's input; the error names the field and what it should have been.
fn parse<O: Operation>(input: Value) -> Result<O> {
    // A list would otherwise be taken for the fields in the order of their declaration.
    if !input.is_object() {
        return Err(Error::invalid("invalid_input", format!("The input of {} is not valid", O::SPEC.name))
            .detail("it is a JSON object"));
    }
    serde_path_to_error::deserialize(input).map_err(|error| {
        let path = error.path().to_string();
        let what = error.into_inner().to_string();
        let mut refusal =
            Error::new(ErrorKind::Invalid, "invalid_input", format!("The input of {} is not valid", O::SPEC.name));
        refusal = if path == "." {
            refusal.detail(what)
        } else {
            refusal.detail(format!("{path}: {what}")).reason(path, "type", what)
        };
        refusal.next(format!("see what it takes: nephos {} {} --help", O::SPEC.noun(), O::SPEC.verb()), None)
    })
}

macro_rules! table {
    ($($family:ident: [$($operation:ident),* $(,)?];)*) => {
        /// All operations, grouped by family.
        #[must_use]
        pub fn table() -> &'static [Entry] {
            static TABLE: &[Entry] = &[$($(Entry::of::<crate::$family::$operation>(),)*)*];
            TABLE
        }
    };
}

table! {
    compute: [
        CreateFlavor, ListFlavors, ShowFlavor, DeleteFlavor,
        CreateKeyPair, ListKeyPairs, ShowKeyPair, DeleteKeyPair,
        ShowQuota, UpdateQuota, ShowDomainQuota, UpdateDomainQuota,
        CreateServer, ListServers, ShowServer, UpdateServer, DeleteServer, StartServer, StopServer, RebootServer,
        PauseServer, UnpauseServer, SuspendServer, ResumeServer, RebuildServer, ResizeServer, ConfirmResize, RevertResize,
        SnapshotServer, RescueServer, UnrescueServer, ShelveServer, UnshelveServer, LockServer, UnlockServer, RestoreServer,
        OpenConsole, ReadConsoleLog, OpenDisplay, MakeConsoleUrl, RevokeConsoles, OpenConsoleUrl,
        ExecuteCommand, PushFile, PullFile, ResetServerPassword, ResetServerKeys, ShowGuest, TakeScreenshot, ListUsage,
    ];
    workflow: [
        ListWorkflows, ShowWorkflow, WatchWorkflow, CancelWorkflow, RetryWorkflow,
        CreateSchedule, ListSchedules, ShowSchedule, DeleteSchedule,
    ];
    identity: [
        CreateToken, ShowToken, RevokeToken,
        CreateDomain, ListDomains, ShowDomain, UpdateDomain, DeleteDomain,
        CreateProject, ListProjects, ShowProject, UpdateProject, DeleteProject,
        CreateUser, ListUsers, ShowUser, UpdateUser, DeleteUser, SetPassword, ResetPassword,
        CreateGroup, ListGroups, ShowGroup, UpdateGroup, DeleteGroup, AddGroupUser, RemoveGroupUser, ListGroupUsers,
        CreateRole, ListRoles, ShowRole, UpdateRole, DeleteRole,
        CreateAssignment, ListAssignments, DeleteAssignment,
        CreateApplicationCredential, ListApplicationCredentials, ShowApplicationCredential, DeleteApplicationCredential,
        CreateAccessKey, ListAccessKeys, ShowAccessKey, DeleteAccessKey,
    ];
    image: [
        CreateImage, UploadImage, DownloadImage, ListImages, ShowImage, UpdateImage, DeleteImage,
        StartUpload, UploadPart, ShowUpload, FinishUpload, CancelUpload, ImportImage, PrefetchImage, MoveImageContent, MoveImages, DeactivateImage, ReactivateImage,
        ListImageMembers, ShareImage, UnshareImage, AcceptImage, RejectImage,
    ];
    network: [
        CreateNetwork, ListNetworks, ShowNetwork, UpdateNetwork, DeleteNetwork,
        CreateSubnet, ListSubnets, ShowSubnet, UpdateSubnet, DeleteSubnet,
        CreatePort, ListPorts, ShowPort, UpdatePort, DeletePort,
        CreateSecurityGroup, ListSecurityGroups, ShowSecurityGroup, UpdateSecurityGroup, DeleteSecurityGroup,
        CreateSecurityGroupRule, ListSecurityGroupRules, ShowSecurityGroupRule, DeleteSecurityGroupRule,
    ];
    node: [ListNodes, ShowNode, UpdateNode, DeleteNode, CreateJoinToken, UpgradeNode];
    placement: [
        CreateServerGroup, ListServerGroups, ShowServerGroup, DeleteServerGroup,
        CreateAggregate, ListAggregates, ShowAggregate, UpdateAggregate, DeleteAggregate, AddAggregateNode, RemoveAggregateNode,
        AssignNode, CordonNode, UncordonNode, DrainNode, LoseNode, MoveServer,
        ListZones, ListTraits, ShowCapacity, ListCapacity,
        ShowPlacement, SetFilter, SetWeight, SetOvercommit, ExplainPlacement,
    ];
    system: [ListAudit, WatchEvents, BackUp, ShowKeys, RotateKeys];
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_operation_is_complete_and_unique() {
        let mut names = BTreeSet::new();
        let mut routes = BTreeSet::new();
        for entry in table() {
            let spec = entry.spec;
            assert!(spec.name.contains('.') && !spec.summary.is_empty(), "{}: name and summary", spec.name);
            assert!(spec.path.starts_with("/v1/"), "{}: path", spec.name);
            assert!(!spec.permission.0.is_empty(), "{}: permission", spec.name);
            assert!(names.insert(spec.name), "{} appears twice", spec.name);
            assert!(routes.insert((spec.method.as_str(), spec.path)), "{} shares its route", spec.name);
        }
    }

    #[test]
    fn path_and_positional_fields_are_fields_of_the_input() {
        for entry in table() {
            let fields = crate::schema::Fields::of(entry);
            let named = entry.spec.positional.iter().chain(entry.spec.seldom).copied();
            for field in entry.spec.path_fields().chain(named) {
                assert!(fields.get(field).is_some(), "{}: no input field `{field}`", entry.spec.name);
            }
        }
    }
}

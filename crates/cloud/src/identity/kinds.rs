//! The stored forms: domains, projects, people, what they may do, and their credentials.
//!
//! Secrets live in records of their own kinds ([`UserSecret`], [`ApplicationCredentialSecret`], [`AccessKeySecret`]), so
//! that the audit trail and every view of the things they belong to cannot hold them.

use nephos_ops::Role as BuiltIn;
use nephos_store::{Kind, Record};
use nephos_types::{
    AccessKeyId, ApplicationCredentialId, AssignmentId, DomainId, GroupId, MembershipId, ProjectId, RevocationId,
    RoleId, Timestamp, UserId,
};
use serde::{Deserialize, Serialize};

/// The outermost owner of projects, users and groups. Its name is unique in the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Free text.
    pub description: String,
    /// Nobody of a disabled domain can log in, and nobody to it or its projects.
    pub enabled: bool,
}

impl Kind for Domain {
    type Id = DomainId;
    const NAME: &'static str = "domain";
}

/// What owns resources. Its name is unique in its domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// The domain that owns it.
    pub domain: DomainId,
    /// The project above it.
    pub parent: Option<ProjectId>,
    /// Free text.
    pub description: String,
    /// Nobody can log in to a disabled project.
    pub enabled: bool,
}

impl Kind for Project {
    type Id = ProjectId;
    const NAME: &'static str = "project";
    const INDEXES: &'static [&'static str] = &["domain", "parent"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "domain" => vec![record.body.domain.to_string()],
            "parent" => record.body.parent.iter().map(ToString::to_string).collect(),
            _ => vec![],
        }
    }
}

/// Somebody, or some program, that can log in. Its name is unique in its domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The domain that owns it.
    pub domain: DomainId,
    /// Free text.
    pub description: String,
    /// An address for people to write to.
    pub email: Option<String>,
    /// A disabled user cannot log in.
    pub enabled: bool,
    /// Where a login without a scope leads.
    pub default_project: Option<ProjectId>,
    /// Raised when all tokens of the user shall end.
    pub epoch: u32,
}

impl Kind for User {
    type Id = UserId;
    const NAME: &'static str = "user";
    const INDEXES: &'static [&'static str] = &["domain"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "domain" => vec![record.body.domain.to_string()],
            _ => vec![],
        }
    }
}

/// A user's password, under the user's id.
#[derive(Clone, Serialize, Deserialize)]
pub struct UserSecret {
    /// As `auth` made it.
    pub password_hash: String,
}

impl Kind for UserSecret {
    type Id = UserId;
    const NAME: &'static str = "user_secret";
    const AUDITED: bool = false;
    const SECRET: bool = true;
}

/// Users who are given roles together. Its name is unique in its domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The domain that owns it.
    pub domain: DomainId,
    /// Free text.
    pub description: String,
}

impl Kind for Group {
    type Id = GroupId;
    const NAME: &'static str = "group";
    const INDEXES: &'static [&'static str] = &["domain"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "domain" => vec![record.body.domain.to_string()],
            _ => vec![],
        }
    }
}

/// One user in one group; the claim `member/<group>/<user>` holds it together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// The user.
    pub user: UserId,
}

impl Membership {
    /// The claim that makes it unique.
    #[must_use]
    pub fn claim(group: GroupId, user: UserId) -> String {
        format!("member/{group}/{user}")
    }
}

impl Kind for Membership {
    type Id = MembershipId;
    const NAME: &'static str = "membership";
    const INDEXES: &'static [&'static str] = &["group", "user"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "group" => vec![record.body.group.to_string()],
            "user" => vec![record.body.user.to_string()],
            _ => vec![],
        }
    }
}

/// A named permission. Its name is unique in the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Free text.
    pub description: String,
    /// Roles that whoever has this one has too.
    pub implies: Vec<RoleId>,
    /// Part of the cloud: neither changed nor deleted.
    pub built_in: bool,
}

impl Kind for Role {
    type Id = RoleId;
    const NAME: &'static str = "role";
    const INDEXES: &'static [&'static str] = &["implies"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "implies" => record.body.implies.iter().map(ToString::to_string).collect(),
            _ => vec![],
        }
    }
}

/// The built-in roles, each with what it implies, in an order in which implied ones come first.
pub(crate) const BUILT_IN_ROLES: [(BuiltIn, Option<BuiltIn>, &str); 5] = [
    (BuiltIn::Reader, None, "May look"),
    (BuiltIn::Member, Some(BuiltIn::Reader), "May use"),
    (BuiltIn::Manager, Some(BuiltIn::Member), "May manage people and quotas within the scope"),
    (BuiltIn::Admin, Some(BuiltIn::Manager), "May do everything, everywhere"),
    (BuiltIn::Service, None, "May do what one service asks of another"),
];

/// Who is given a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// One user.
    User(UserId),
    /// All users of a group.
    Group(GroupId),
}

impl Actor {
    /// The value in the index `actor`.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::User(id) => id.to_string(),
            Self::Group(id) => id.to_string(),
        }
    }
}

/// What a role is given on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One project.
    Project(ProjectId),
    /// One domain.
    Domain(DomainId),
    /// The cloud as a whole.
    System,
}

impl Target {
    /// The value in the index `target`.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Project(id) => id.to_string(),
            Self::Domain(id) => id.to_string(),
            Self::System => "system".to_owned(),
        }
    }
}

/// One role given to somebody on something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The role.
    pub role: RoleId,
    /// To whom.
    pub actor: Actor,
    /// On what.
    pub target: Target,
    /// Holds on the projects below the target and not on the target itself, as in Keystone.
    pub inherited: bool,
}

impl Assignment {
    /// The claim that makes it unique.
    #[must_use]
    pub fn claim(&self) -> String {
        let kind = if self.inherited { "inherited" } else { "direct" };
        format!("assignment/{}/{}/{}/{kind}", self.role, self.actor.key(), self.target.key())
    }
}

impl Kind for Assignment {
    type Id = AssignmentId;
    const NAME: &'static str = "assignment";
    const INDEXES: &'static [&'static str] = &["actor", "target", "role"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "actor" => vec![record.body.actor.key()],
            "target" => vec![record.body.target.key()],
            "role" => vec![record.body.role.to_string()],
            _ => vec![],
        }
    }
}

/// A secret with which a program logs in as its owner, on one project. Its name is unique for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationCredential {
    /// Whose it is. The project stands in the record's `meta`.
    pub user: UserId,
    /// Free text.
    pub description: String,
    /// The roles it gives; void as soon as the user has lost one of them.
    pub roles: Vec<RoleId>,
    /// May make and delete credentials itself.
    pub unrestricted: bool,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

impl Kind for ApplicationCredential {
    type Id = ApplicationCredentialId;
    const NAME: &'static str = "application_credential";
    const INDEXES: &'static [&'static str] = &["user", "role"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "user" => vec![record.body.user.to_string()],
            "role" => record.body.roles.iter().map(ToString::to_string).collect(),
            _ => vec![],
        }
    }
}

/// An application credential's secret, under its id.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApplicationCredentialSecret {
    /// As `auth` made it.
    pub hash: String,
}

impl Kind for ApplicationCredentialSecret {
    type Id = ApplicationCredentialId;
    const NAME: &'static str = "application_credential_secret";
    const AUDITED: bool = false;
    const SECRET: bool = true;
}

/// A key pair that signs requests of EC2 and S3 clients as its owner, on one project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// Whose it is. The project stands in the record's `meta`.
    pub user: UserId,
    /// Free text.
    pub description: String,
    /// The application credential with which it was made: it gives no more than that, and ends with it.
    pub application_credential: Option<ApplicationCredentialId>,
}

impl Kind for AccessKey {
    type Id = AccessKeyId;
    const NAME: &'static str = "access_key";
    const INDEXES: &'static [&'static str] = &["user", "credential"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "user" => vec![record.body.user.to_string()],
            "credential" => record.body.application_credential.iter().map(ToString::to_string).collect(),
            _ => vec![],
        }
    }
}

/// An access key's secret, under its id, sealed by `auth`'s vault.
#[derive(Clone, Serialize, Deserialize)]
pub struct AccessKeySecret {
    /// Opens for the access key's id only.
    pub sealed: String,
}

impl Kind for AccessKeySecret {
    type Id = AccessKeyId;
    const NAME: &'static str = "access_key_secret";
    const AUDITED: bool = false;
    const SECRET: bool = true;
}

/// A token that ended before its time, under the token's own id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Whose token it was.
    pub user: UserId,
    /// When the token would have ended; the record is of no use afterwards.
    pub expires_at: Timestamp,
}

impl Kind for Revocation {
    type Id = RevocationId;
    const NAME: &'static str = "revocation";
}

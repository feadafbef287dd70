//! Operations on security groups and their rules.

use nephos_types::{
    Cidr, Labels, Name, Number, Page, ProjectId, Reference, SecurityGroupId, SecurityGroupRuleId, Text, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::PortRange;
use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// Which way, as seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the server.
    Ingress,
    /// From the server.
    Egress,
}

/// Version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum IpVersion {
    Ipv4,
    Ipv6,
}

/// What may pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupRule {
    /// Its id.
    pub id: SecurityGroupRuleId,
    /// The group that it is of.
    pub security_group: SecurityGroupId,
    /// The project that owns it.
    pub project: ProjectId,
    /// Which way.
    pub direction: Direction,
    /// Of which version.
    pub version: IpVersion,
    /// `tcp`, `udp`, `icmp`, or the number of another protocol; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// To these ports, for `tcp` and `udp`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortRange>,
    /// Of this type, for `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Of this code, for `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// From (to) these addresses; all when absent, unless `remote_group` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Cidr>,
    /// From (to) ports that have this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_group: Option<SecurityGroupId>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for SecurityGroupRule {}

/// Rules for what may reach, and be reached from, the ports that have it. What no rule allows does not pass; answers to
/// what was allowed do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its name, unique in the project.
    pub name: Name,
    /// The project that owns it.
    pub project: ProjectId,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its rules.
    pub rules: Vec<SecurityGroupRule>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for SecurityGroup {}

const COLUMNS: &[&str] = &["name", "description", "id"];
const RULE_COLUMNS: &[&str] = &["direction", "version", "protocol", "ports", "remote", "remote_group", "id"];

/// Make a security group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSecurityGroup {
    /// Name, unique in the project.
    pub name: Name,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<255>>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateSecurityGroup {
    type Output = SecurityGroup;
    const SPEC: Spec = Spec {
        name: "security-group.create",
        method: Method::Post,
        path: "/v1/security-groups",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Make a security group",
        description: "A new one lets everything out and nothing in.",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "For web servers", command: "nephos security-group create web" }],
        ..Spec::DEFAULT
    };
}

/// List security groups.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListSecurityGroups {
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<SecurityGroupId>,
}
impl Operation for ListSecurityGroups {
    type Output = Page<SecurityGroup>;
    const SPEC: Spec = Spec {
        name: "security-group.list",
        method: Method::Get,
        path: "/v1/security-groups",
        permission: Permission::PROJECT_READER,
        summary: "List security groups",
        columns: COLUMNS,
        examples: &[Example { title: "Of the project", command: "nephos security-group list" }],
        ..Spec::DEFAULT
    };
}

/// Show a security group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowSecurityGroup {
    /// Name or id.
    pub security_group: Reference,
}
impl Operation for ShowSecurityGroup {
    type Output = SecurityGroup;
    const SPEC: Spec = Spec {
        name: "security-group.show",
        method: Method::Get,
        path: "/v1/security-groups/{security_group}",
        permission: Permission::PROJECT_READER,
        summary: "Show one security group and its rules",
        positional: &["security_group"],
        columns: COLUMNS,
        examples: &[Example { title: "That of servers that name none", command: "nephos security-group show default" }],
        ..Spec::DEFAULT
    };
}

/// Change a security group. What is absent stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSecurityGroup {
    /// Name or id.
    pub security_group: Reference,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<255>>,
    /// Labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
impl Operation for UpdateSecurityGroup {
    type Output = SecurityGroup;
    const SPEC: Spec = Spec {
        name: "security-group.update",
        method: Method::Patch,
        path: "/v1/security-groups/{security_group}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Change a security group's name or description",
        positional: &["security_group"],
        columns: COLUMNS,
        examples: &[Example { title: "Another name", command: "nephos security-group update web --name front" }],
        ..Spec::DEFAULT
    };
}

/// Delete a security group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteSecurityGroup {
    /// Name or id.
    pub security_group: Reference,
}
impl Operation for DeleteSecurityGroup {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "security-group.delete",
        method: Method::Delete,
        path: "/v1/security-groups/{security_group}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete a security group and its rules",
        description: "Refused while a port has it. The project's `default` stays.",
        positional: &["security_group"],
        examples: &[Example { title: "By name", command: "nephos security-group delete web" }],
        ..Spec::DEFAULT
    };
}

/// Add a rule to a security group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSecurityGroupRule {
    /// Name or id of the group.
    pub security_group: Reference,
    /// Which way; `ingress` (to the server) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Of which version; that of `remote`, or `ipv4`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<IpVersion>,
    /// `tcp`, `udp`, `icmp`, or the number of another protocol; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Text<16>>,
    /// To these ports, for `tcp` and `udp`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortRange>,
    /// Of this type, for `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<Number<0, 255>>,
    /// Of this code, for `icmp`; needs `icmp_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<Number<0, 255>>,
    /// From (to) these addresses; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Cidr>,
    /// From (to) ports that have this group, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_group: Option<Reference>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<255>>,
}
impl Operation for CreateSecurityGroupRule {
    type Output = SecurityGroupRule;
    const SPEC: Spec = Spec {
        name: "security-group-rule.create",
        method: Method::Post,
        path: "/v1/security-group-rules",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Let something pass",
        positional: &["security_group"],
        columns: RULE_COLUMNS,
        examples: &[
            Example {
                title: "SSH from anywhere",
                command: "nephos security-group-rule create default --protocol tcp --ports 22",
            },
            Example {
                title: "Everything among those that have the group",
                command: "nephos security-group-rule create web --remote-group web",
            },
        ],
        ..Spec::DEFAULT
    };
}

/// List rules.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListSecurityGroupRules {
    /// Of this group only, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_group: Option<Reference>,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<SecurityGroupRuleId>,
}
impl Operation for ListSecurityGroupRules {
    type Output = Page<SecurityGroupRule>;
    const SPEC: Spec = Spec {
        name: "security-group-rule.list",
        method: Method::Get,
        path: "/v1/security-group-rules",
        permission: Permission::PROJECT_READER,
        summary: "List the rules of security groups",
        columns: RULE_COLUMNS,
        examples: &[Example {
            title: "Of one group",
            command: "nephos security-group-rule list --security-group default",
        }],
        ..Spec::DEFAULT
    };
}

/// Show a rule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowSecurityGroupRule {
    /// Its id.
    pub rule: Reference,
}
impl Operation for ShowSecurityGroupRule {
    type Output = SecurityGroupRule;
    const SPEC: Spec = Spec {
        name: "security-group-rule.show",
        method: Method::Get,
        path: "/v1/security-group-rules/{rule}",
        permission: Permission::PROJECT_READER,
        summary: "Show one rule",
        positional: &["rule"],
        columns: RULE_COLUMNS,
        examples: &[Example { title: "By id", command: "nephos security-group-rule show sgrule-01hzx3k7q9m2c" }],
        ..Spec::DEFAULT
    };
}

/// Delete a rule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteSecurityGroupRule {
    /// Its id.
    pub rule: Reference,
}
impl Operation for DeleteSecurityGroupRule {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "security-group-rule.delete",
        method: Method::Delete,
        path: "/v1/security-group-rules/{rule}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Let something pass no longer",
        description: "Connections that only this rule allowed are cut.",
        positional: &["rule"],
        examples: &[Example { title: "By id", command: "nephos security-group-rule delete sgrule-01hzx3k7q9m2c" }],
        ..Spec::DEFAULT
    };
}

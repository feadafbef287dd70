//! Who may call what.
//!
//! The default is in the operation table: each operation names the grants of which any suffices. A policy file may
//! replace the grants of single operations. The role `admin`, held in whatever scope, is the cloud's administrator, as
//! in Keystone's default policy; only a rule of `deny` binds it too.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use nephos_ops::{Grant, Identity, Role, Scope, Spec};
use nephos_types::{DomainId, Error, ErrorKind, ProjectId, Result};

/// By which right a call was allowed; decides what it may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Anyone may call this.
    Anyone,
    /// Anyone with a valid token may.
    LoggedIn,
    /// By a role on this project.
    Project(ProjectId),
    /// By a role on this domain.
    Domain(DomainId),
    /// By a role on the system.
    System,
    /// By the role `admin`, in whatever scope.
    Administrator,
}

/// The policy in force: the table's grants, and what a policy file put in their place.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    overrides: HashMap<String, Override>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Override {
    Deny,
    Rules(Vec<Rule>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Anyone,
    LoggedIn,
    Role { role: String, scope: ScopeKind },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScopeKind {
    Project,
    Domain,
    System,
    Any,
}

impl ScopeKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Domain => "domain",
            Self::System => "system",
            Self::Any => "any",
        }
    }

    /// The right that a token of this scope gives, if its scope is of this kind.
    fn matches(self, scope: &Scope) -> Option<Allowed> {
        match (self, scope) {
            (Self::Project | Self::Any, Scope::Project { id, .. }) => Some(Allowed::Project(*id)),
            (Self::Domain | Self::Any, Scope::Domain { id, .. }) => Some(Allowed::Domain(*id)),
            (Self::System | Self::Any, Scope::System) => Some(Allowed::System),
            _ => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::LoggedIn => f.write_str("any login"),
            Self::Role { role, scope: ScopeKind::System } => write!(f, "`{role}` on the system"),
            Self::Role { role, scope: ScopeKind::Any } => write!(f, "`{role}` on anything"),
            Self::Role { role, scope } => write!(f, "`{role}` on a {}", scope.name()),
        }
    }
}

impl From<Grant> for Rule {
    fn from(grant: Grant) -> Self {
        let role = |role: Role, scope| Self::Role { role: role.name().to_owned(), scope };
        match grant {
            Grant::Anyone => Self::Anyone,
            Grant::LoggedIn => Self::LoggedIn,
            Grant::Project(held) => role(held, ScopeKind::Project),
            Grant::Domain(held) => role(held, ScopeKind::Domain),
            Grant::System(held) => role(held, ScopeKind::System),
        }
    }
}

impl Policy {
    /// Reads a policy file: TOML, operation name to a list of `role@scope`, or `"deny"`.
    ///
    /// Scopes are `project`, `domain`, `system` and `any`; the words `anyone` and `logged-in` stand for themselves.
    /// `operations` and `roles` are what exists; other names are refused with the nearest one that does, because a
    /// misspelt rule would silently leave the default in force.
    pub fn parse<'a>(
        text: &str,
        operations: impl IntoIterator<Item = &'a str>,
        roles: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            Error::invalid("policy_invalid", "The policy file is not valid TOML").detail(error.to_string())
        })?;
        let operations: BTreeSet<&str> = operations.into_iter().collect();
        let roles: BTreeSet<&str> = roles.into_iter().collect();
        let mut entries = vec![];
        flatten("", &table, &mut entries);
        let mut policy = Self::default();
        for (name, value) in entries {
            if !operations.contains(name.as_str()) {
                return Err(unknown("operation", &name, &operations));
            }
            let rules = parse_override(&name, value, &roles)?;
            policy.overrides.insert(name, rules);
        }
        Ok(policy)
    }

    /// Whether this identity may call the operation, and by which right; the widest right wins.
    pub fn allows(&self, spec: &Spec, identity: Option<&Identity>) -> Result<Allowed> {
        let rules = match self.overrides.get(spec.name) {
            Some(Override::Deny) => {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "denied_by_policy",
                    format!("{} is switched off", spec.name),
                )
                .detail("this cloud's policy file denies it to everybody"));
            }
            Some(Override::Rules(rules)) => return decide(spec, rules.iter().cloned(), identity),
            None => spec.permission.0,
        };
        // The common path allocates nothing: the table's grants are compared as they are.
        match allowed_by_grants(rules, identity) {
            Some(allowed) => Ok(allowed),
            None => decide(spec, rules.iter().copied().map(Rule::from), identity),
        }
    }
}

fn allowed_by_grants(grants: &[Grant], identity: Option<&Identity>) -> Option<Allowed> {
    let Some(identity) = identity else {
        return grants.contains(&Grant::Anyone).then_some(Allowed::Anyone);
    };
    if identity.has(Role::Admin) {
        return Some(Allowed::Administrator);
    }
    let by_role = grants.iter().find_map(|grant| match (*grant, &identity.scope) {
        (Grant::Project(role), Scope::Project { id, .. }) if identity.has(role) => Some(Allowed::Project(*id)),
        (Grant::Domain(role), Scope::Domain { id, .. }) if identity.has(role) => Some(Allowed::Domain(*id)),
        (Grant::System(role), Scope::System) if identity.has(role) => Some(Allowed::System),
        _ => None,
    });
    by_role
        .or_else(|| grants.contains(&Grant::LoggedIn).then_some(Allowed::LoggedIn))
        .or_else(|| grants.contains(&Grant::Anyone).then_some(Allowed::Anyone))
}

fn decide(spec: &Spec, rules: impl Iterator<Item = Rule>, identity: Option<&Identity>) -> Result<Allowed> {
    let rules: Vec<Rule> = rules.collect();
    let Some(identity) = identity else {
        if rules.contains(&Rule::Anyone) {
            return Ok(Allowed::Anyone);
        }
        return Err(not_logged_in(spec.name));
    };
    if identity.has(Role::Admin) {
        return Ok(Allowed::Administrator);
    }
    let by_role = rules.iter().find_map(|rule| match rule {
        Rule::Role { role, scope } if identity.roles.contains(role) => scope.matches(&identity.scope),
        _ => None,
    });
    by_role
        .or_else(|| rules.contains(&Rule::LoggedIn).then_some(Allowed::LoggedIn))
        .or_else(|| rules.contains(&Rule::Anyone).then_some(Allowed::Anyone))
        .ok_or_else(|| forbidden(spec.name, &rules, identity))
}

/// The refusal of a caller who showed no credentials.
#[must_use]
pub fn not_logged_in(what: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, "not_logged_in", "Log in first")
        .detail(format!("{what} needs a valid token"))
        .next("log in with a user and a password", Some("nephos token create --help".to_owned()))
}

fn forbidden(operation: &str, rules: &[Rule], identity: &Identity) -> Error {
    let needs = rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", or ");
    let roles = if identity.roles.is_empty() {
        "no role".to_owned()
    } else {
        identity.roles.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ")
    };
    let scope = match &identity.scope {
        Scope::Unscoped => "an unscoped token".to_owned(),
        Scope::Project { name, .. } => format!("project `{name}`"),
        Scope::Domain { name, .. } => format!("domain `{name}`"),
        Scope::System => "the system".to_owned(),
    };
    Error::new(ErrorKind::Forbidden, "forbidden", format!("Not allowed: {operation}"))
        .detail(format!("it needs {needs}; `{}` has {roles} on {scope}", identity.user_name))
        .next("ask an administrator for the role, or log in to another project, domain or the system", None)
}

/// `server.create = …` without quotes is a nested table in TOML; both spellings mean the operation `server.create`.
fn flatten<'a>(prefix: &str, table: &'a toml::Table, into: &mut Vec<(String, &'a toml::Value)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, into),
            value => into.push((name, value)),
        }
    }
}

fn parse_override(operation: &str, value: &toml::Value, roles: &BTreeSet<&str>) -> Result<Override> {
    let texts: Vec<&str> = match value {
        toml::Value::String(text) if text == "deny" => return Ok(Override::Deny),
        toml::Value::String(text) => vec![text],
        toml::Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().ok_or_else(|| malformed(operation, &item.to_string())))
            .collect::<Result<_>>()?,
        other => return Err(malformed(operation, &other.to_string())),
    };
    texts.into_iter().map(|text| parse_rule(operation, text, roles)).collect::<Result<_>>().map(Override::Rules)
}

fn parse_rule(operation: &str, text: &str, roles: &BTreeSet<&str>) -> Result<Rule> {
    match text {
        "anyone" => return Ok(Rule::Anyone),
        "logged-in" => return Ok(Rule::LoggedIn),
        _ => {}
    }
    let (role, scope) = text.split_once('@').ok_or_else(|| malformed(operation, text))?;
    let scope = [ScopeKind::Project, ScopeKind::Domain, ScopeKind::System, ScopeKind::Any]
        .into_iter()
        .find(|kind| kind.name() == scope)
        .ok_or_else(|| malformed(operation, text))?;
    if !roles.contains(role) {
        return Err(unknown("role", role, roles));
    }
    Ok(Rule::Role { role: role.to_owned(), scope })
}

fn malformed(operation: &str, rule: &str) -> Error {
    Error::invalid("policy_invalid", format!("The policy file's rule for {operation} is not understood")).detail(format!(
        "`{rule}` is neither \"deny\" nor a list of \"ROLE@project\", \"ROLE@domain\", \"ROLE@system\", \"ROLE@any\", \
         \"logged-in\" or \"anyone\""
    ))
}

fn unknown(what: &str, name: &str, known: &BTreeSet<&str>) -> Error {
    let nearest = known.iter().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let error = Error::invalid("policy_invalid", format!("The policy file names an unknown {what}"));
    match nearest {
        Some(nearest) => error.detail(format!("there is no {what} `{name}`; did you mean `{nearest}`?")),
        None => error.detail(format!("there is no {what} `{name}`")),
    }
}

#[cfg(test)]
mod tests {
    use nephos_ops::{Login, Permission};
    use nephos_types::{Timestamp, UserId};

    use super::*;

    const OPERATIONS: [&str; 3] = ["server.create", "server.list", "user.delete"];
    const ROLES: [&str; 6] = ["admin", "manager", "member", "reader", "service", "auditor"];

    fn spec(grants: &'static [Grant]) -> Spec {
        Spec { name: "server.create", permission: Permission(grants), ..Spec::DEFAULT }
    }

    fn scopes() -> [Scope; 4] {
        [
            Scope::Unscoped,
            Scope::Project { id: ProjectId::new(), name: "demo".parse().unwrap(), domain: DomainId::new() },
            Scope::Domain { id: DomainId::new(), name: "default".parse().unwrap() },
            Scope::System,
        ]
    }

    fn identity(scope: &Scope, roles: &[&str]) -> Identity {
        Identity {
            user: UserId::new(),
            user_name: "alice".parse().unwrap(),
            user_domain: DomainId::new(),
            scope: scope.clone(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            issued_at: Timestamp::now(),
            expires_at: Timestamp::now(),
            login: Login::default(),
        }
    }

    /// A role with those that it implies, as tokens carry them.
    const HELD: [&[&str]; 6] = [
        &[],
        &["reader"],
        &["member", "reader"],
        &["manager", "member", "reader"],
        &["admin", "manager", "member", "reader"],
        &["service"],
    ];

    #[test]
    fn every_role_in_every_scope_against_every_grant() {
        let roles = [Role::Reader, Role::Member, Role::Manager, Role::Admin, Role::Service];
        for held in HELD {
            for scope in scopes() {
                let who = identity(&scope, held);
                for role in roles {
                    let grants = [
                        (spec_of(Grant::Project(role)), matches!(scope, Scope::Project { .. })),
                        (spec_of(Grant::Domain(role)), matches!(scope, Scope::Domain { .. })),
                        (spec_of(Grant::System(role)), scope == Scope::System),
                    ];
                    for (spec, in_scope) in grants {
                        let expected = held.contains(&"admin") || (in_scope && held.contains(&role.name()));
                        let result = Policy::default().allows(&spec, Some(&who));
                        assert_eq!(result.is_ok(), expected, "{held:?} on {scope:?} against {:?}", spec.permission);
                        match result {
                            Ok(Allowed::Administrator) => assert!(held.contains(&"admin")),
                            Ok(Allowed::Project(id)) => assert_eq!(who.project(), Some(id)),
                            Ok(Allowed::Domain(id)) => {
                                assert!(matches!(scope, Scope::Domain { id: own, .. } if own == id));
                            }
                            Ok(Allowed::System) => assert_eq!(scope, Scope::System),
                            Ok(other) => panic!("{other:?}"),
                            Err(error) => assert_eq!(error.kind, ErrorKind::Forbidden),
                        }
                    }
                }
                assert!(Policy::default().allows(&spec(&[Grant::LoggedIn]), Some(&who)).is_ok());
                assert!(Policy::default().allows(&spec(&[Grant::Anyone]), Some(&who)).is_ok());
            }
        }
    }

    fn spec_of(grant: Grant) -> Spec {
        Spec { name: "server.create", permission: Permission(Box::leak(Box::new([grant]))), ..Spec::DEFAULT }
    }

    #[test]
    fn who_did_not_log_in_may_do_only_what_anyone_may() {
        let policy = Policy::default();
        assert_eq!(policy.allows(&spec(&[Grant::Anyone]), None).unwrap(), Allowed::Anyone);
        for grant in [Grant::LoggedIn, Grant::Project(Role::Reader), Grant::System(Role::Admin)] {
            assert_eq!(policy.allows(&spec_of(grant), None).unwrap_err().kind, ErrorKind::Unauthenticated);
        }
    }

    #[test]
    fn a_refusal_says_what_is_needed_and_what_one_has() {
        let [_, project, ..] = scopes();
        let spec = spec(&[Grant::Project(Role::Member), Grant::System(Role::Admin)]);
        let error = Policy::default().allows(&spec, Some(&identity(&project, &["reader"]))).unwrap_err();
        assert_eq!(
            error.detail,
            "it needs `member` on a project, or `admin` on the system; `alice` has `reader` on project `demo`"
        );
    }

    #[test]
    fn a_file_replaces_the_rules_of_single_operations() {
        let text = r#"
            "server.create" = ["auditor@project", "reader@system"]
            server.list = "anyone"
            user.delete = "deny"
        "#;
        let policy = Policy::parse(text, OPERATIONS, ROLES).unwrap();
        let [_, project, _, system] = scopes();
        let named = |name| Spec { name, ..spec(&[Grant::Project(Role::Member)]) };
        let create = named("server.create");
        assert!(policy.allows(&create, Some(&identity(&project, &["auditor"]))).is_ok());
        assert!(policy.allows(&create, Some(&identity(&project, &["member", "reader"]))).is_err());
        assert_eq!(policy.allows(&create, Some(&identity(&system, &["reader"]))).unwrap(), Allowed::System);
        assert_eq!(policy.allows(&create, Some(&identity(&project, HELD[4]))).unwrap(), Allowed::Administrator);
        assert!(policy.allows(&named("server.list"), None).is_ok());
        let denied = policy.allows(&named("user.delete"), Some(&identity(&system, HELD[4]))).unwrap_err();
        assert_eq!(denied.code, "denied_by_policy");
        assert!(policy.allows(&named("server.stop"), Some(&identity(&project, &["member"]))).is_ok());
    }

    #[test]
    fn a_wrong_file_is_refused_with_what_was_meant() {
        for (text, expected) in [
            ("\"server.crate\" = \"deny\"", "did you mean `server.create`"),
            ("\"server.create\" = [\"membr@project\"]", "did you mean `member`"),
            ("\"server.create\" = [\"member\"]", "is neither"),
            ("\"server.create\" = [\"member@planet\"]", "is neither"),
            ("\"server.create\" = 1", "is neither"),
            ("\"server.create\" = [1]", "is neither"),
            ("= x", "TOML"),
        ] {
            let error = Policy::parse(text, OPERATIONS, ROLES).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }
}

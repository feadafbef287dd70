//! Who is out of reach of whom: managers of a domain or project neither become the cloud's administrator nor act on
//! those who are more than they.

use std::collections::BTreeSet;

use nephos_ops::{Role as BuiltIn, Scope};
use nephos_store::{Query, Store};
use nephos_types::{DomainId, Error, ErrorKind, Result, RoleId, UserId};

use super::{
    kinds::{Actor, Assignment, Project, Target},
    roles,
};
use crate::{Session, Visible};

impl Session {
    /// Whether the caller looks after this domain: with the system's scope, the role `admin`, or a token for it.
    pub(super) fn manages(&self, domain: DomainId) -> bool {
        match self.visible() {
            Visible::Everything => true,
            Visible::Domain(own) => own == domain,
            Visible::Project(_) | Visible::Nothing => false,
        }
    }

    /// Refuses to let the caller change what reaches further than the caller: a user or group with the role `admin`, with
    /// a role on the system, or with one outside the domain that the caller manages.
    pub(super) fn outranks(&self, actor: Actor) -> Result<()> {
        if self.is_admin() {
            return Ok(());
        }
        let reach = self.identity()?.scope.clone();
        let actors = match actor {
            Actor::User(user) => roles::actors(self.store(), user),
            Actor::Group(_) => vec![actor],
        };
        if actors.into_iter().any(|actor| reaches_further(self.store(), actor, &reach)) {
            return Err(Error::new(ErrorKind::Forbidden, "outranked", "They may do more than you")
                .detail("they have the role `admin`, or a role outside of what you manage")
                .next("ask the cloud's administrator", None));
        }
        Ok(())
    }

    /// Refuses to let the caller give or take a role that the caller does not have.
    pub(super) fn may_pass_on(&self, role: RoleId) -> Result<()> {
        if self.is_admin() {
            return Ok(());
        }
        let all = roles::names(self.store(), &roles::expand(self.store(), [role]));
        let identity = self.identity()?;
        if all.is_subset(&identity.roles) && !all.contains(BuiltIn::Admin.name()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forbidden, "role_not_held", "You can pass on only roles that you have").detail(
            format!(
                "you have {}",
                identity.roles.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ")
            ),
        ))
    }

    /// Whether the caller may give roles on this target.
    pub(super) fn may_give_on(&self, target: Target) -> bool {
        match (self.visible(), target) {
            (Visible::Everything, _) => true,
            (Visible::Domain(own), Target::Domain(domain)) => own == domain,
            (Visible::Domain(own), Target::Project(project)) => {
                self.store().get::<Project>(project).is_some_and(|project| project.body.domain == own)
            }
            (Visible::Project(own), Target::Project(project)) => own == project,
            _ => false,
        }
    }

    /// Whether this user is the caller, or the caller the cloud's administrator.
    pub(super) fn acts_for(&self, user: UserId) -> bool {
        self.is_admin() || self.identity().is_ok_and(|identity| identity.user == user)
    }
}

/// Whether a user or group has `admin`, or a role outside of a scope and what is below it.
fn reaches_further(store: &Store, actor: Actor, scope: &Scope) -> bool {
    let domain = match scope {
        Scope::Domain { id, .. } => Some(*id),
        _ => None,
    };
    store.list::<Assignment>(&Query::all().index("actor", actor.key())).items.iter().any(|given| {
        let inside = match given.body.target {
            // A role on the system reaches further even than another one on the system: only `admin` weighs them.
            Target::System => false,
            _ if *scope == Scope::System => true,
            Target::Domain(id) => Some(id) == domain,
            Target::Project(id) => store.get::<Project>(id).map(|project| project.body.domain) == domain,
        };
        let all: BTreeSet<String> = roles::names(store, &roles::expand(store, [given.body.role]));
        !inside || all.contains(BuiltIn::Admin.name())
    })
}

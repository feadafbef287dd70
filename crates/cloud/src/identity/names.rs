//! Where the names of this family's kinds are looked up, and who may see which of them.

use nephos_ops::{Role as BuiltIn, Scope};
use nephos_store::Record;
use nephos_types::{DomainId, Reference, Result, UserId};

use super::{
    kinds::{ApplicationCredential, Domain, Group, Project, Role, User},
    roles,
};
use crate::{CLOUD, Named, Session, Visible};

impl Session {
    /// The domain that the caller works in: that of the token's scope, or else the user's.
    pub fn domain(&self) -> Result<DomainId> {
        let identity = self.identity()?;
        Ok(match &identity.scope {
            Scope::Project { domain, .. } => *domain,
            Scope::Domain { id, .. } => *id,
            Scope::Unscoped | Scope::System => identity.user_domain,
        })
    }

    /// The domain that the caller named, or works in.
    pub fn domain_or(&self, reference: Option<&Reference>) -> Result<DomainId> {
        match reference {
            Some(reference) => Ok(self.find::<Domain>(reference)?.meta.id),
            None => self.domain(),
        }
    }

    fn is_user(&self, user: UserId) -> bool {
        self.identity().is_ok_and(|identity| identity.user == user)
    }

    /// Whether people of this domain are visible: to those who look after it, or after a project of it.
    fn sees_people_of(&self, domain: DomainId) -> bool {
        match self.visible() {
            Visible::Everything => true,
            Visible::Domain(own) => own == domain,
            Visible::Project(_) => {
                self.domain().is_ok_and(|own| own == domain)
                    && self.identity().is_ok_and(|identity| identity.has(BuiltIn::Manager))
            }
            Visible::Nothing => false,
        }
    }
}

/// The domain in which the caller's names are looked up.
fn own_domain(session: &Session) -> Vec<String> {
    session.domain().map(|domain| domain.to_string()).into_iter().collect()
}

impl Named for Domain {
    const NOUN: &'static str = "domain";

    fn spaces(_: &Session) -> Vec<String> {
        vec![CLOUD.to_owned()]
    }

    /// One's own domain, that of the token's scope, and all for those who see everything.
    fn visible(session: &Session, record: &Record<Self>) -> bool {
        session.visible() == Visible::Everything
            || session.domain().is_ok_and(|domain| domain == record.meta.id)
            || session.identity().is_ok_and(|identity| identity.user_domain == record.meta.id)
    }
}

impl Named for Project {
    const NOUN: &'static str = "project";

    fn spaces(session: &Session) -> Vec<String> {
        own_domain(session)
    }

    /// The token's project, those of the token's domain, and those one has a role on.
    fn visible(session: &Session, record: &Record<Self>) -> bool {
        match session.visible() {
            Visible::Everything => return true,
            Visible::Domain(domain) if domain == record.body.domain => return true,
            Visible::Project(project) if project == record.meta.id => return true,
            _ => {}
        }
        session.identity().is_ok_and(|identity| {
            let target = super::kinds::Target::Project(record.meta.id);
            !roles::on(session.store(), identity.user, target).is_empty()
        })
    }
}

impl Named for User {
    const NOUN: &'static str = "user";

    fn spaces(session: &Session) -> Vec<String> {
        own_domain(session)
    }

    fn visible(session: &Session, record: &Record<Self>) -> bool {
        session.is_user(record.meta.id) || session.sees_people_of(record.body.domain)
    }
}

impl Named for Group {
    const NOUN: &'static str = "group";

    fn spaces(session: &Session) -> Vec<String> {
        own_domain(session)
    }

    fn visible(session: &Session, record: &Record<Self>) -> bool {
        session.sees_people_of(record.body.domain)
    }
}

impl Named for Role {
    const NOUN: &'static str = "role";

    fn spaces(_: &Session) -> Vec<String> {
        vec![CLOUD.to_owned()]
    }
}

impl Named for ApplicationCredential {
    const NOUN: &'static str = "application-credential";

    fn spaces(session: &Session) -> Vec<String> {
        session.identity().map(|identity| identity.user.to_string()).into_iter().collect()
    }

    /// One's own only, except for the cloud's administrator.
    fn visible(session: &Session, record: &Record<Self>) -> bool {
        session.is_user(record.body.user) || session.is_admin()
    }
}

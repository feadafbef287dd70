//! Which roles somebody has on something: direct ones, those of groups, inherited and implied ones.

use std::collections::BTreeSet;

use nephos_store::{Query, Store};
use nephos_types::{ProjectId, RoleId, UserId};

use super::kinds::{Actor, Assignment, Membership, Project, Role, Target};

/// How deep projects may be nested.
pub(super) const MAX_DEPTH: usize = 8;

/// The user, and the groups it is in.
pub(super) fn actors(store: &Store, user: UserId) -> Vec<Actor> {
    let memberships = store.list::<Membership>(&Query::all().index("user", user));
    let groups = memberships.items.iter().map(|membership| Actor::Group(membership.body.group));
    [Actor::User(user)].into_iter().chain(groups).collect()
}

/// The projects above one, nearest first.
pub(super) fn ancestors(store: &Store, project: &Project) -> Vec<ProjectId> {
    let mut above = vec![];
    let mut parent = project.parent;
    while let Some(id) = parent
        && above.len() < MAX_DEPTH
    {
        above.push(id);
        parent = store.get::<Project>(id).and_then(|project| project.body.parent);
    }
    above
}

/// Roles that a user has on a target, without implied ones.
pub(super) fn on(store: &Store, user: UserId, target: Target) -> BTreeSet<RoleId> {
    let mut places = vec![(target, false)];
    if let Target::Project(id) = target
        && let Some(project) = store.get::<Project>(id)
    {
        places.extend(ancestors(store, &project.body).into_iter().map(|above| (Target::Project(above), true)));
        places.push((Target::Domain(project.body.domain), true));
    }
    let mut roles = BTreeSet::new();
    for actor in actors(store, user) {
        for (place, inherited) in &places {
            let query = Query::all().index("actor", actor.key()).index("target", place.key());
            let given = store.list::<Assignment>(&query);
            roles.extend(given.items.iter().filter(|one| one.body.inherited == *inherited).map(|one| one.body.role));
        }
    }
    roles
}

/// The roles and all they imply.
pub(super) fn expand(store: &Store, roles: impl IntoIterator<Item = RoleId>) -> BTreeSet<RoleId> {
    let mut all = BTreeSet::new();
    let mut open: Vec<RoleId> = roles.into_iter().collect();
    while let Some(role) = open.pop() {
        if all.insert(role)
            && let Some(record) = store.get::<Role>(role)
        {
            open.extend(&record.body.implies);
        }
    }
    all
}

/// The roles' names; roles that are gone have none.
pub(super) fn names(store: &Store, roles: &BTreeSet<RoleId>) -> BTreeSet<String> {
    roles.iter().filter_map(|role| Some(store.get::<Role>(*role)?.meta.name.as_ref()?.as_str().to_owned())).collect()
}

/// All projects on which a user has a role, in the order of their ids.
pub(super) fn projects_of(store: &Store, user: UserId) -> BTreeSet<ProjectId> {
    let mut projects = BTreeSet::new();
    for actor in actors(store, user) {
        for given in store.list::<Assignment>(&Query::all().index("actor", actor.key())).items {
            match (given.body.target, given.body.inherited) {
                (Target::Project(id), false) => {
                    projects.insert(id);
                }
                (Target::Project(id), true) => below(store, id, &mut projects),
                (Target::Domain(id), true) => {
                    let inside = store.list::<Project>(&Query::all().index("domain", id));
                    projects.extend(inside.items.iter().map(|project| project.meta.id));
                }
                _ => {}
            }
        }
    }
    projects
}

/// All projects below one, at any depth.
fn below(store: &Store, project: ProjectId, into: &mut BTreeSet<ProjectId>) {
    let mut open = vec![project];
    while let Some(above) = open.pop() {
        for child in store.list::<Project>(&Query::all().index("parent", above)).items {
            if into.insert(child.meta.id) {
                open.push(child.meta.id);
            }
        }
    }
}

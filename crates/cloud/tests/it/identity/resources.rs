//! Making, finding, changing and deleting what identity keeps.

use nephos_cloud::identity::{
    ProjectUse,
    kinds::{AccessKey, Assignment, Membership},
};
use nephos_ops::identity::{
    AddGroupUser, CreateApplicationCredential, CreateAssignment, CreateDomain, CreateGroup, CreateProject, CreateRole,
    CreateUser, DeleteAssignment, DeleteDomain, DeleteGroup, DeleteProject, DeleteRole, DeleteUser, ListAssignments,
    ListGroupUsers, ListProjects, ListUsers, RemoveGroupUser, ShowGroup, ShowProject, ShowRole, ShowUser, UpdateDomain,
    UpdateGroup, UpdateProject, UpdateRole, UpdateUser,
};
use nephos_store::Query;
use nephos_types::ErrorKind;
use serde_json::json;

use super::world::{PASSWORD, World, code, input, password_of};

#[tokio::test]
async fn things_are_found_by_name_by_id_and_by_the_beginning_of_the_id() {
    let world = World::new().await;
    let admin = world.admin().await;
    let shop =
        admin.call(input::<CreateProject>(json!({ "name": "shop", "labels": { "team": "blue" } }))).await.unwrap();
    let id = shop.id.to_string();
    for reference in ["shop", id.as_str(), &id[..id.len() - 1]] {
        let found = admin.call(input::<ShowProject>(json!({ "project": reference }))).await.unwrap();
        assert_eq!(found, shop, "{reference}");
    }
    assert_eq!(code(admin.call(input::<ShowProject>(json!({ "project": "prj-0" }))).await), "project_not_found");
    assert_eq!(code(admin.call(input::<ShowProject>(json!({ "project": &id[..8] }))).await), "ambiguous_reference");
}

#[tokio::test]
async fn names_are_unique_in_their_domain_and_free_after_a_change() {
    let world = World::new().await;
    world.domain("blue").await;
    let admin = world.admin().await;
    let create = |domain: &str| input::<CreateProject>(json!({ "name": "shop", "domain": domain }));
    admin.call(create("default")).await.unwrap();
    admin.call(create("blue")).await.unwrap();
    let error = admin.call(create("default")).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "name_taken"));
    let taken = json!({ "project": "shop", "name": "demo" });
    assert_eq!(code(admin.call(input::<UpdateProject>(taken)).await), "name_taken");
    admin.call(input::<UpdateProject>(json!({ "project": "shop", "name": "store" }))).await.unwrap();
    admin.call(create("default")).await.unwrap();
    admin.call(input::<DeleteProject>(json!({ "project": "shop" }))).await.unwrap();
    admin.call(create("default")).await.unwrap();
}

#[tokio::test]
async fn lists_page_without_gaps_and_filter() {
    let world = World::new().await;
    let admin = world.admin().await;
    for number in 0..7 {
        let enabled = number % 2 == 0;
        admin.call(input::<CreateUser>(json!({ "name": format!("user{number}"), "enabled": enabled }))).await.unwrap();
    }
    let mut names = vec![];
    let mut after = None;
    loop {
        let page = admin.call(input::<ListUsers>(json!({ "limit": 3, "after": after }))).await.unwrap();
        assert!(page.items.len() <= 3);
        names.extend(page.items.iter().map(|user| user.name.to_string()));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(names.len(), 8);
    assert_eq!(admin.call(input::<ListUsers>(json!({ "enabled": false }))).await.unwrap().items.len(), 3);
    let one = admin.call(input::<ListUsers>(json!({ "name": "user3", "domain": "default" }))).await.unwrap();
    assert_eq!(one.items.len(), 1);
}

#[tokio::test]
async fn projects_nest_within_a_domain_up_to_a_depth() {
    let world = World::new().await;
    world.domain("blue").await;
    world.project("elsewhere", "blue").await;
    let admin = world.admin().await;
    let mut parent = "demo".to_owned();
    let mut made = 0;
    let error = loop {
        let name = format!("{parent}x");
        match admin.call(input::<CreateProject>(json!({ "name": name, "parent": parent }))).await {
            Ok(_) => (parent, made) = (name, made + 1),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code.as_ref(), made), ("too_deep", 7));
    let inherited = json!({ "role": "member", "user": "alice", "project": "demo", "inherited": true });
    world.user("alice", "default", None).await;
    admin.call(input::<CreateAssignment>(inherited)).await.unwrap();
    let login = |project: &str| json!({ "user": "alice", "password": password_of("alice"), "project": project });
    assert!(world.token(login(&parent)).await.is_ok(), "inherited over all levels");
    assert_eq!(code(world.token(login("demo")).await), "no_role");
    let alice = world.log_in(login(&parent)).await.unwrap();
    assert_eq!(alice.call(input::<ListProjects>(json!({ "mine": true }))).await.unwrap().items.len(), 7);
    let foreign = json!({ "name": "x", "domain": "blue", "parent": admin.call(input::<ShowProject>(json!({ "project": "demo" }))).await.unwrap().id });
    assert_eq!(code(admin.call(input::<CreateProject>(foreign)).await), "parent_elsewhere");
}

fn two(_: &nephos_store::Store, _: nephos_types::ProjectId) -> u64 {
    2
}

#[tokio::test]
async fn a_project_that_holds_something_stays() {
    let servers = ProjectUse { what: "servers", count: two, counter: None };
    let world = World::with_uses(vec![servers]).await;
    let admin = world.admin().await;
    let error = admin.call(input::<DeleteProject>(json!({ "project": "demo" }))).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "not_empty"));
    assert_eq!(error.reasons[0].detail, "2 servers are in it");
    assert!(admin.call(input::<ShowProject>(json!({ "project": "demo" }))).await.unwrap().enabled);

    fn none(_: &nephos_store::Store, _: nephos_types::ProjectId) -> u64 {
        0
    }
    let counted =
        ProjectUse { what: "servers", count: none, counter: Some(|project| format!("quota/{project}/servers")) };
    let world = World::with_uses(vec![counted]).await;
    let admin = world.admin().await;
    let demo = admin.call(input::<ShowProject>(json!({ "project": "demo" }))).await.unwrap().id;
    let counter = format!("quota/{demo}/servers");
    let author = nephos_store::Author::new("test");
    let add = |amount| nephos_store::Transaction::new(author.clone()).add(&counter, amount, nephos_store::Bound::Any);
    world.store.commit(add(1)).await.unwrap();
    assert_eq!(code(admin.call(input::<DeleteProject>(json!({ "project": demo }))).await), "not_empty");
    assert!(admin.call(input::<ShowProject>(json!({ "project": demo }))).await.unwrap().enabled, "enabled again");
    world.store.commit(add(-1)).await.unwrap();
    admin.call(input::<DeleteProject>(json!({ "project": demo }))).await.unwrap();
    assert_eq!(world.store.count::<AccessKey>(&Query::all()), 0);
    assert!(world.store.list::<Assignment>(&Query::all().index("target", demo)).items.is_empty());
    assert_eq!(world.store.counter(&counter), 0);
}

#[tokio::test]
async fn a_domain_is_disabled_and_emptied_before_it_goes() {
    let world = World::new().await;
    let admin = world.admin().await;
    let blue = world.domain("blue").await;
    world.project("shop", "blue").await;
    world.user("alice", "blue", Some(json!({ "role": "manager", "domain": "blue" }))).await;
    let delete = || input::<DeleteDomain>(json!({ "domain": "blue" }));
    assert_eq!(code(admin.call(delete()).await), "domain_enabled");
    admin.call(input::<UpdateDomain>(json!({ "domain": "blue", "enabled": false }))).await.unwrap();
    let error = admin.call(delete()).await.unwrap_err();
    assert_eq!(error.reasons.iter().map(|one| one.subject.as_str()).collect::<Vec<_>>(), ["projects", "users"]);
    assert_eq!(
        code(admin.call(input::<CreateUser>(json!({ "name": "x", "domain": "blue" }))).await),
        "domain_disabled"
    );
    for (domain, change) in [("default", json!({ "enabled": false })), ("default", json!({ "name": "x" }))] {
        let mut update = change;
        update["domain"] = domain.into();
        assert_eq!(code(admin.call(input::<UpdateDomain>(update)).await), "default_domain");
    }
    let shop = admin.call(input::<ListProjects>(json!({ "domain": "blue" }))).await.unwrap().items[0].id;
    let alice = admin.call(input::<ListUsers>(json!({ "domain": "blue" }))).await.unwrap().items[0].id;
    admin.call(input::<DeleteProject>(json!({ "project": shop }))).await.unwrap();
    admin.call(input::<DeleteUser>(json!({ "user": alice }))).await.unwrap();
    admin.call(delete()).await.unwrap();
    assert!(world.store.list::<Assignment>(&Query::all().index("target", blue)).items.is_empty());
    admin.call(input::<CreateDomain>(json!({ "name": "blue" }))).await.unwrap();
}

#[tokio::test]
async fn a_user_goes_with_everything_that_hangs_on_it() {
    let world = World::new().await;
    let admin = world.admin().await;
    let id = world.user("alice", "default", Some(json!({ "role": "member", "project": "demo" }))).await;
    admin.call(input::<CreateGroup>(json!({ "name": "crew" }))).await.unwrap();
    admin.call(input::<AddGroupUser>(json!({ "group": "crew", "user": "alice" }))).await.unwrap();
    let alice = world.log_in(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    alice.call(input::<CreateApplicationCredential>(json!({ "name": "backup" }))).await.unwrap();
    admin.call(input::<DeleteUser>(json!({ "user": "alice" }))).await.unwrap();
    assert_eq!(world.store.count::<Membership>(&Query::all()), 0);
    assert!(world.store.list::<Assignment>(&Query::all().index("actor", id)).items.is_empty());
    for prefix in ["name/user/", "name/application_credential/", "member/", "assignment/"] {
        let held = world.store.claims(prefix, None, 100);
        assert!(held.iter().all(|(key, owner)| !key.contains(&id.to_string()) && *owner != id.to_string()), "{held:?}");
    }
    let own = admin.caller.identity.as_ref().unwrap().user;
    assert_eq!(code(admin.call(input::<DeleteUser>(json!({ "user": own }))).await), "own_user");
    assert_eq!(code(admin.call(input::<UpdateUser>(json!({ "user": own, "enabled": false }))).await), "own_user");
}

#[tokio::test]
async fn groups_give_their_roles_to_their_users() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.user("alice", "default", None).await;
    admin.call(input::<CreateGroup>(json!({ "name": "crew", "description": "on deck" }))).await.unwrap();
    admin.call(input::<UpdateGroup>(json!({ "group": "crew", "name": "sailors" }))).await.unwrap();
    assert_eq!(admin.call(input::<ShowGroup>(json!({ "group": "sailors" }))).await.unwrap().description, "on deck");
    let member = json!({ "role": "member", "group": "sailors", "project": "demo" });
    admin.call(input::<CreateAssignment>(member)).await.unwrap();
    let login = json!({ "user": "alice", "password": password_of("alice"), "project": "demo" });
    let both = json!({ "group": "sailors", "user": "alice" });
    assert_eq!(code(world.token(login.clone()).await), "no_role");
    admin.call(input::<AddGroupUser>(both.clone())).await.unwrap();
    admin.call(input::<AddGroupUser>(both.clone())).await.unwrap();
    let token = world.token(login).await.unwrap();
    let inside = admin.call(input::<ListGroupUsers>(json!({ "group": "sailors" }))).await.unwrap();
    assert_eq!(inside.items.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["alice"]);
    admin.call(input::<RemoveGroupUser>(both.clone())).await.unwrap();
    assert!(world.with(&token).await.is_err());
    assert_eq!(code(admin.call(input::<RemoveGroupUser>(both)).await), "not_a_member");
    admin.call(input::<DeleteGroup>(json!({ "group": "sailors" }))).await.unwrap();
    assert_eq!(admin.call(input::<ListAssignments>(json!({ "project": "demo" }))).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn roles_imply_without_circles_and_stay_while_somebody_has_them() {
    let world = World::new().await;
    let admin = world.admin().await;
    admin.call(input::<CreateRole>(json!({ "name": "auditor", "implies": ["reader"] }))).await.unwrap();
    admin.call(input::<CreateRole>(json!({ "name": "chief", "implies": ["auditor"] }))).await.unwrap();
    let circle = json!({ "role": "auditor", "implies": ["chief"] });
    assert_eq!(code(admin.call(input::<UpdateRole>(circle)).await), "role_cycle");
    assert_eq!(
        code(admin.call(input::<CreateRole>(json!({ "name": "x", "implies": ["admin"] }))).await),
        "role_implies_admin"
    );
    for change in [json!({ "role": "member", "name": "x" }), json!({ "role": "admin", "description": "x" })] {
        assert_eq!(code(admin.call(input::<UpdateRole>(change)).await), "built_in_role");
    }
    assert_eq!(code(admin.call(input::<DeleteRole>(json!({ "role": "reader" }))).await), "built_in_role");

    world.user("alice", "default", Some(json!({ "role": "chief", "project": "demo" }))).await;
    let alice = world.log_in(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    let roles = alice.caller.identity.as_ref().unwrap().roles.clone();
    assert_eq!(roles.iter().map(String::as_str).collect::<Vec<_>>(), ["auditor", "chief", "reader"]);
    assert_eq!(code(admin.call(input::<DeleteRole>(json!({ "role": "chief" }))).await), "in_use");
    assert_eq!(code(admin.call(input::<DeleteRole>(json!({ "role": "auditor" }))).await), "in_use");
    admin.call(input::<DeleteUser>(json!({ "user": "alice" }))).await.unwrap();
    admin.call(input::<DeleteRole>(json!({ "role": "chief" }))).await.unwrap();
    assert_eq!(
        admin.call(input::<ShowRole>(json!({ "role": "auditor" }))).await.unwrap().implies[0].as_str(),
        "reader"
    );
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let world = World::new().await;
    let admin = world.admin().await;
    let on_system = || input::<ListAssignments>(json!({ "system": true }));
    let only = admin.call(on_system()).await.unwrap().items[0].id;
    assert_eq!(code(admin.call(DeleteAssignment { assignment: only }).await), "last_administrator");
    world.user("second", "default", Some(json!({ "role": "admin", "system": true }))).await;
    admin.call(DeleteAssignment { assignment: only }).await.unwrap();
}

#[tokio::test]
async fn unclear_assignments_and_odd_addresses_are_invalid() {
    let world = World::new().await;
    let admin = world.admin().await;
    for wrong in [
        json!({ "role": "member", "project": "demo" }),
        json!({ "role": "member", "user": "admin", "group": "x", "project": "demo" }),
        json!({ "role": "member", "user": "admin" }),
        json!({ "role": "member", "user": "admin", "project": "demo", "system": true }),
        json!({ "role": "member", "user": "admin", "system": true, "inherited": true }),
    ] {
        assert_eq!(
            admin.call(input::<CreateAssignment>(wrong.clone())).await.unwrap_err().kind,
            ErrorKind::Invalid,
            "{wrong}"
        );
    }
    for email in ["nobody", "@", "a b@c"] {
        let wrong = json!({ "name": "x", "email": email });
        assert_eq!(code(admin.call(input::<CreateUser>(wrong)).await), "invalid_email");
    }
    let user = admin.call(input::<ShowUser>(json!({ "user": "admin" }))).await.unwrap();
    assert!(user.has_password && !format!("{user:?}").contains(PASSWORD));
}

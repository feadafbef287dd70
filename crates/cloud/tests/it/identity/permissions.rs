//! Who may call what: over the whole table, and where it matters over every role and scope.

use nephos_ops::{
    Context, Entry, Grant,
    identity::{
        AddGroupUser, CreateAssignment, CreateGroup, CreateUser, DeleteUser, ListAssignments, ListProjects, ListUsers,
        ResetPassword, ShowProject, ShowUser, UpdateProject, UpdateUser,
    },
};
use nephos_types::{Error, ErrorKind};
use serde_json::{Value, json};

use super::world::{World, code, input, password_of};

fn identity_operations() -> impl Iterator<Item = &'static Entry> {
    const NOUNS: [&str; 9] =
        ["token", "domain", "project", "user", "group", "role", "assignment", "application-credential", "access-key"];
    nephos_ops::table().iter().filter(|entry| NOUNS.contains(&entry.spec.noun()))
}

/// Input that parses, for every operation of the family.
fn plausible(name: &str) -> Value {
    match name {
        "domain.create" | "project.create" | "user.create" | "group.create" | "role.create" => json!({ "name": "new" }),
        "application-credential.create" => json!({ "name": "new" }),
        "assignment.create" => json!({ "role": "reader", "user": "admin", "system": true }),
        "assignment.delete" => json!({ "assignment": "asg-0000000000000" }),
        "access-key.show" | "access-key.delete" => json!({ "key": "key-0000000000000" }),
        "application-credential.show" | "application-credential.delete" => json!({ "credential": "none" }),
        "user.set-password" => json!({ "original_password": "a", "password": "b" }),
        "user.reset-password" => json!({ "user": "none", "password": "b" }),
        "group.add-user" | "group.remove-user" => json!({ "group": "none", "user": "none" }),
        "group.users" => json!({ "group": "none" }),
        other => match other.split_once('.') {
            Some((noun, "show" | "update" | "delete")) if noun != "token" => json!({ noun: "none" }),
            _ => json!({}),
        },
    }
}

async fn call(entry: &Entry, context: &Context, input: Value) -> Option<Error> {
    (entry.call)(context.clone(), input).await.err()
}

#[tokio::test]
async fn every_operation_refuses_those_without_a_login_or_a_role_and_input_it_does_not_know() {
    let world = World::new().await;
    world.user("alice", "default", None).await;
    let alice = world.log_in(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    let admin = world.admin().await;
    let mut seen = 0;
    for entry in identity_operations() {
        seen += 1;
        let name = entry.spec.name;
        let grants = entry.spec.permission.0;
        let anyone = call(entry, &world.anyone(), plausible(name)).await.map(|error| error.kind);
        if !grants.contains(&Grant::Anyone) {
            assert_eq!(anyone, Some(ErrorKind::Unauthenticated), "{name} without a login");
        }
        let error = call(entry, &alice, plausible(name)).await;
        if !grants.contains(&Grant::Anyone) && !grants.contains(&Grant::LoggedIn) {
            let error = error.unwrap();
            assert_eq!(error.kind, ErrorKind::Forbidden, "{name} without a role");
            assert!(error.detail.contains("it needs `") && error.detail.contains("no role"), "{}", error.detail);
        }
        let mut unknown = plausible(name);
        unknown["surprise"] = true.into();
        assert_eq!(
            call(entry, &admin, unknown).await.unwrap().kind,
            ErrorKind::Invalid,
            "{name} with an unknown field"
        );
        let wrong = call(entry, &admin, json!([1])).await.unwrap();
        assert_eq!(wrong.kind, ErrorKind::Invalid, "{name} with a list");
        for (field, _) in plausible(name).as_object().unwrap() {
            let mut wrong = plausible(name);
            wrong[field] = json!({ "no": 1 });
            assert_eq!(call(entry, &admin, wrong).await.unwrap().kind, ErrorKind::Invalid, "{name}.{field}");
        }
    }
    assert_eq!(seen, 44);
}

#[tokio::test]
async fn nothing_that_does_not_exist_is_a_defect() {
    let world = World::new().await;
    let admin = world.admin().await;
    for entry in identity_operations() {
        let name = entry.spec.name;
        if ["show", "update", "delete", "users", "add-user", "remove-user", "reset-password"]
            .contains(&entry.spec.verb())
            && entry.spec.noun() != "token"
        {
            let error = call(entry, &admin, plausible(name)).await.unwrap();
            assert_eq!(error.kind, ErrorKind::NotFound, "{name}: {error}");
        }
    }
}

/// Two domains, `blue` and `red`, each with a project and a user; somebody with one role on one of them.
async fn two_domains(role: Value, scope: Value) -> (World, Context) {
    let world = World::new().await;
    for domain in ["blue", "red"] {
        world.domain(domain).await;
        world.project(&format!("{domain}-shop"), domain).await;
        world.user(&format!("{domain}-user"), domain, None).await;
    }
    world.user("boss", "blue", Some(role)).await;
    let mut login = scope;
    login["user"] = "boss".into();
    login["user_domain"] = "blue".into();
    login["password"] = password_of("boss").into();
    let boss = world.log_in(login).await.unwrap();
    (world, boss)
}

#[tokio::test]
async fn a_domains_manager_manages_it_and_does_not_see_others() {
    let (world, boss) = two_domains(json!({ "role": "manager", "domain": "blue" }), json!({ "domain": "blue" })).await;
    let admin = world.admin().await;
    let red = admin.call(input::<ShowUser>(json!({ "user": "red-user", "domain": "red" }))).await.unwrap().id;
    let red_shop =
        admin.call(input::<ShowProject>(json!({ "project": "red-shop", "domain": "red" }))).await.unwrap().id;

    let carol = boss.call(input::<CreateUser>(json!({ "name": "carol", "password": "x" }))).await.unwrap();
    assert_eq!(carol.domain, boss.caller.identity.as_ref().unwrap().user_domain);
    boss.call(input::<UpdateUser>(json!({ "user": "blue-user", "description": "well known" }))).await.unwrap();
    boss.call(input::<UpdateProject>(json!({ "project": "blue-shop", "description": "of flowers" }))).await.unwrap();
    let names: Vec<String> =
        boss.call(ListUsers::default()).await.unwrap().items.into_iter().map(|user| user.name.to_string()).collect();
    assert_eq!(names, ["blue-user", "boss", "carol"]);
    let names: Vec<String> =
        boss.call(ListProjects::default()).await.unwrap().items.into_iter().map(|one| one.name.to_string()).collect();
    assert_eq!(names, ["blue-shop"]);
    let member = json!({ "role": "member", "user": "carol", "project": "blue-shop" });
    boss.call(input::<CreateAssignment>(member)).await.unwrap();

    assert_eq!(code(boss.call(input::<ShowUser>(json!({ "user": red }))).await), "user_not_found");
    assert_eq!(code(boss.call(input::<UpdateUser>(json!({ "user": red, "enabled": false }))).await), "user_not_found");
    assert_eq!(code(boss.call(input::<DeleteUser>(json!({ "user": red }))).await), "user_not_found");
    assert_eq!(code(boss.call(input::<ShowProject>(json!({ "project": red_shop }))).await), "project_not_found");
    assert_eq!(code(boss.call(input::<CreateUser>(json!({ "name": "x", "domain": "red" }))).await), "domain_not_found");
    let foreign = json!({ "role": "member", "user": "carol", "project": red_shop });
    assert_eq!(code(boss.call(input::<CreateAssignment>(foreign)).await), "project_not_found");
    let held = boss.call(ListAssignments::default()).await.unwrap();
    assert!(
        held.items.iter().all(|one| one.target_name.as_ref().is_some_and(|name| name.as_str().starts_with("blue")))
    );
}

#[tokio::test]
async fn nobody_makes_themselves_an_administrator() {
    let (world, boss) = two_domains(json!({ "role": "manager", "domain": "blue" }), json!({ "domain": "blue" })).await;
    let admin = world.admin().await;
    for target in [json!({ "domain": "blue" }), json!({ "project": "blue-shop" }), json!({ "system": true })] {
        for role in ["admin", "service"] {
            let mut give = target.clone();
            give["role"] = role.into();
            give["user"] = "boss".into();
            let code = code(boss.call(input::<CreateAssignment>(give)).await);
            assert!(["role_not_held", "system_not_found"].contains(&code.as_str()), "{role} on {target}: {code}");
        }
    }
    // A user, and a group, of the manager's own domain that may do more than the manager.
    world.give("blue-user", "blue", json!({ "role": "admin", "project": "red-shop", "project_domain": "red" })).await;
    admin.call(input::<CreateGroup>(json!({ "name": "operators", "domain": "blue" }))).await.unwrap();
    let operators = json!({ "role": "reader", "group": "operators", "actor_domain": "blue", "system": true });
    admin.call(input::<CreateAssignment>(operators)).await.unwrap();
    let reset = json!({ "user": "blue-user", "password": "x" });
    assert_eq!(code(boss.call(input::<ResetPassword>(reset)).await), "outranked");
    assert_eq!(code(boss.call(input::<DeleteUser>(json!({ "user": "blue-user" }))).await), "outranked");
    let join = json!({ "group": "operators", "user": "boss" });
    assert_eq!(code(boss.call(input::<AddGroupUser>(join)).await), "outranked");
}

#[tokio::test]
async fn what_each_role_in_each_scope_may_do() {
    // (role and where, scope of the login, may list users, may make a user, may see the project, may change it)
    let cases = [
        (
            json!({ "role": "reader", "project": "blue-shop", "project_domain": "blue" }),
            json!({ "project": "blue-shop" }),
            false,
            false,
            true,
            false,
        ),
        (
            json!({ "role": "member", "project": "blue-shop", "project_domain": "blue" }),
            json!({ "project": "blue-shop" }),
            false,
            false,
            true,
            false,
        ),
        (
            json!({ "role": "manager", "project": "blue-shop", "project_domain": "blue" }),
            json!({ "project": "blue-shop" }),
            false,
            false,
            true,
            false,
        ),
        (
            json!({ "role": "admin", "project": "blue-shop", "project_domain": "blue" }),
            json!({ "project": "blue-shop" }),
            true,
            true,
            true,
            true,
        ),
        (json!({ "role": "reader", "domain": "blue" }), json!({ "domain": "blue" }), true, false, true, false),
        (json!({ "role": "member", "domain": "blue" }), json!({ "domain": "blue" }), true, false, true, false),
        (json!({ "role": "manager", "domain": "blue" }), json!({ "domain": "blue" }), true, true, true, true),
        (json!({ "role": "manager", "domain": "red" }), json!({ "domain": "red" }), true, true, false, false),
        (json!({ "role": "reader", "system": true }), json!({ "system": true }), true, false, true, false),
        (json!({ "role": "manager", "system": true }), json!({ "system": true }), true, false, true, false),
        (json!({ "role": "admin", "system": true }), json!({ "system": true }), true, true, true, true),
    ];
    for (role, scope, lists_users, makes_users, sees, changes) in cases {
        let (world, boss) = two_domains(role.clone(), scope).await;
        let shop = json!({ "project": "blue-shop", "domain": "blue" });
        let shop = world.admin().await.call(input::<ShowProject>(shop)).await.unwrap().id;
        assert_eq!(boss.call(ListUsers::default()).await.is_ok(), lists_users, "{role}");
        assert_eq!(boss.call(input::<CreateUser>(json!({ "name": "new" }))).await.is_ok(), makes_users, "{role}");
        assert_eq!(boss.call(input::<ShowProject>(json!({ "project": shop }))).await.is_ok(), sees, "{role}");
        let update = json!({ "project": shop, "description": "changed" });
        assert_eq!(boss.call(input::<UpdateProject>(update)).await.is_ok(), changes, "{role}");
    }
}

#[tokio::test]
async fn a_projects_manager_gives_roles_on_it_and_nowhere_else() {
    let (world, boss) = two_domains(
        json!({ "role": "manager", "project": "blue-shop", "project_domain": "blue" }),
        json!({ "project": "blue-shop" }),
    )
    .await;
    world.project("blue-other", "blue").await;
    let give = |role: &str, user: &str, target: Value| {
        let mut give = target;
        give["role"] = role.into();
        give["user"] = user.into();
        input::<CreateAssignment>(give)
    };
    let shop = json!({ "project": "blue-shop" });
    boss.call(give("member", "blue-user", shop.clone())).await.unwrap();
    boss.call(give("member", "blue-user", shop.clone())).await.unwrap();
    assert_eq!(code(boss.call(give("admin", "blue-user", shop.clone())).await), "role_not_held");
    assert_eq!(code(boss.call(give("member", "red-user", shop)).await), "user_not_found");
    assert_eq!(
        code(boss.call(give("member", "blue-user", json!({ "project": "blue-other" }))).await),
        "project_not_found"
    );
    assert_eq!(code(boss.call(give("member", "blue-user", json!({ "domain": "blue" }))).await), "domain_not_found");
}

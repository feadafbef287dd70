//! `--plan`: what a command would change, found out by reading alone.
//!
//! It looks at the resource that the command names and at those that its fields refer to. What only the cloud can decide
//! at the moment itself (quota, room, permission) it does not promise.

use nephos_ops::{Effect, Entry};
use nephos_types::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use crate::{
    command::{leaf, tree},
    session::Session,
    trace::masked,
};

/// What one call would change; `None` if everything is so already.
pub(crate) async fn of(entry: &'static Entry, input: &Value, session: &mut Session) -> Result<Option<Value>> {
    let spec = &entry.spec;
    if spec.effect == Effect::Reads {
        return Ok(None);
    }
    let given = input.as_object().cloned().unwrap_or_default();
    let target = spec.path_fields().next().or_else(|| spec.positional.first().copied());
    let creates = spec.effect == Effect::Creates && spec.path_fields().next().is_none();
    refers_to_what_exists(&given, target.filter(|_| !creates), session).await?;
    if creates {
        return created(entry, &given, session).await.map(Some);
    }
    let subject = target.and_then(|field| given.get(field)).cloned();
    let now = match &subject {
        Some(subject) => current(spec.noun(), subject, session).await?,
        None => None,
    };
    let mut fields = Map::new();
    for (name, wanted) in given.iter().filter(|(name, _)| Some(name.as_str()) != target) {
        let known = now.as_ref().and_then(|now| now.get(name));
        // What is limited is shown with its use beside it.
        let known = known.map(|known| known.get("limit").unwrap_or(known));
        if known != Some(wanted) {
            fields.insert(name.clone(), json!({ "from": known, "to": wanted }));
        }
    }
    let updates = spec.verb() == "update";
    if updates && fields.is_empty() {
        return Ok(None);
    }
    let name = now.as_ref().and_then(|now| now.get("name")).cloned().or(subject);
    let mut plan = json!({ "action": leaf::verb(entry), "kind": leaf::noun(entry), "name": name });
    let state = now.as_ref().and_then(|now| now.get("state").or_else(|| now.get("status")));
    if let (Some(state), Some(plan)) = (state, plan.as_object_mut()) {
        plan.insert("now".to_owned(), state.clone());
    }
    if let (false, Some(plan)) = (fields.is_empty() || tree::is_destructive(entry), plan.as_object_mut()) {
        plan.insert("fields".to_owned(), masked(&Value::Object(fields)));
    }
    Ok(Some(plan))
}

async fn created(entry: &'static Entry, given: &Map<String, Value>, session: &mut Session) -> Result<Value> {
    let noun = leaf::noun(entry);
    if let Some(name) = given.get("name")
        && entry.spec.verb() == "create"
        && current(entry.spec.noun(), name, session).await.is_ok_and(|found| found.is_some())
    {
        let name = name.as_str().unwrap_or_default();
        return Err(Error::conflict("name_taken", format!("There is already a {noun} named `{name}`"))
            .next("choose another name", None));
    }
    let fields = given.iter().filter(|(name, _)| *name != "name").map(|(name, to)| (name.clone(), json!({ "to": to })));
    Ok(json!({
        "action": leaf::verb(entry), "kind": noun, "name": given.get("name"), "fields": masked(&fields.collect::<Map<_, _>>().into()),
    }))
}

/// The resource as it is; `None` where no operation shows one.
async fn current(noun: &str, reference: &Value, session: &mut Session) -> Result<Option<Value>> {
    let Some(show) = leaf::entry(&format!("{noun}.show")) else { return Ok(None) };
    let Some(field) = show.spec.path_fields().next().or_else(|| show.spec.positional.first().copied()) else {
        return Ok(None);
    };
    let input: Map<String, Value> = [(field.to_owned(), reference.clone())].into_iter().collect();
    session.call(&show.spec, &Value::Object(input)).await.map(Some)
}

/// Refuses what would be refused because a field names something that is not there.
async fn refers_to_what_exists(given: &Map<String, Value>, except: Option<&str>, session: &mut Session) -> Result<()> {
    for (name, value) in given.iter().filter(|(name, value)| Some(name.as_str()) != except && value.is_string()) {
        let shown = current(name, value, session).await;
        // Who may not look is not the one to say that it is absent.
        shown.map(|_| ()).or_else(|error| if error.kind == ErrorKind::NotFound { Err(error) } else { Ok(()) })?;
    }
    Ok(())
}

/// For people: a line for the whole, and one for each field.
pub(crate) fn words(plan: &Value) -> String {
    let text = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => crate::terminal::harmless(text),
        Some(other) => crate::terminal::harmless(&other.to_string()),
    };
    let action = text(plan.get("action"));
    let sign = match action.as_str() {
        "create" => '+',
        "delete" | "purge" => '-',
        _ => '~',
    };
    let mut words = format!("{sign} {action} {} {}", text(plan.get("kind")), text(plan.get("name")));
    if let Some(now) = plan.get("now") {
        words.push_str(&format!("  (now {})", text(Some(now))));
    }
    words.push('\n');
    for (name, change) in plan.get("fields").and_then(Value::as_object).into_iter().flatten() {
        let to = text(change.get("to"));
        match change.get("from") {
            Some(from) if !from.is_null() => words.push_str(&format!("    {name}: {} → {to}\n", text(Some(from)))),
            _ => words.push_str(&format!("    {name}: {to}\n")),
        }
    }
    words
}

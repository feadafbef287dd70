//! The routes of the operation table, with what each needs computed once.

use hyper::Method;
use matchit::Router;
use nephos_ops::{AnswerKind, Entry, schema::Fields};
use nephos_types::{Error, Result};
use percent_encoding::percent_decode_str;

/// Everything that REST serves.
pub(crate) struct Routes {
    router: Router<usize>,
    paths: Vec<Path>,
}

/// One path and its methods.
struct Path {
    routes: Vec<Route>,
    allow: String,
}

/// One operation with its input's fields.
pub(crate) struct Route {
    pub(crate) entry: Entry,
    pub(crate) fields: Fields,
    /// Input fields that the path's variable parts fill, in order.
    pub(crate) path_fields: Vec<&'static str>,
    /// The field that `Last-Event-ID` fills.
    pub(crate) resume_field: Option<&'static str>,
    /// Whether the fields that are not in the path come from the query.
    pub(crate) from_query: bool,
}

/// Where a path and method lead.
pub(crate) enum Found<'a> {
    /// To an operation, with the path's variable parts decoded.
    Route(&'a Route, Vec<String>),
    /// Nowhere with this method; these are the ones that lead somewhere.
    OtherMethods(&'a str),
    /// Nowhere.
    Nothing,
}

impl Routes {
    pub(crate) fn new(table: &'static [Entry]) -> Result<Self> {
        let mut router = Router::new();
        let mut paths: Vec<(String, Vec<Route>)> = Vec::new();
        for entry in table {
            let pattern = pattern(entry.spec.path);
            let route = Route::new(entry);
            match paths.iter_mut().find(|(known, _)| *known == pattern) {
                Some((_, routes)) => routes.push(route),
                None => {
                    router.insert(pattern.clone(), paths.len()).map_err(|error| {
                        Error::bug(format!("the route of {} cannot be served: {error}", entry.spec.name))
                    })?;
                    paths.push((pattern, vec![route]));
                }
            }
        }
        let paths = paths
            .into_iter()
            .map(|(_, routes)| {
                let mut methods: Vec<&str> = routes.iter().map(|route| route.entry.spec.method.as_str()).collect();
                if methods.contains(&"GET") {
                    methods.push("HEAD");
                }
                Path { allow: methods.join(", "), routes }
            })
            .collect();
        Ok(Self { router, paths })
    }

    pub(crate) fn find(&self, method: &Method, path: &str) -> Result<Found<'_>> {
        let Some((found, at)) =
            self.router.at(path).ok().and_then(|found| Some((self.paths.get(*found.value)?, found.params)))
        else {
            return Ok(Found::Nothing);
        };
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        let Some(route) = found.routes.iter().find(|route| route.entry.spec.method.as_str() == method) else {
            return Ok(Found::OtherMethods(&found.allow));
        };
        let parts = at.iter().map(|(_, part)| decode(part)).collect::<Result<_>>()?;
        Ok(Found::Route(route, parts))
    }
}

impl Route {
    fn new(entry: &Entry) -> Self {
        let spec = &entry.spec;
        let fields = Fields::of(entry);
        let resume_field =
            ["from", "after"].into_iter().find(|name| entry.answer == AnswerKind::Events && fields.get(name).is_some());
        Self {
            entry: *entry,
            path_fields: spec.path_fields().collect(),
            resume_field,
            from_query: spec.upload || matches!(spec.method, nephos_ops::Method::Get | nephos_ops::Method::Delete),
            fields,
        }
    }
}

/// The pattern with its variable parts numbered: operations may call the same part by different names.
fn pattern(path: &str) -> String {
    let mut number = 0;
    let parts: Vec<String> = path
        .split('/')
        .map(|part| {
            if part.starts_with('{') {
                number += 1;
                format!("{{p{number}}}")
            } else {
                part.to_owned()
            }
        })
        .collect();
    parts.join("/")
}

/// Undoes percent encoding.
pub(crate) fn decode(text: &str) -> Result<String> {
    percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| {
        Error::invalid("not_utf8", "The path or query is not UTF-8").next("encode it as UTF-8, then in percents", None)
    })
}

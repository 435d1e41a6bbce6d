//! The table of routes: what is answered, by which verb. The OpenAPI document is made from it.

use percent_encoding::percent_decode_str;

/// How a route is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// By the verb's reply.
    Verb,
    /// By the verb's events as they come.
    Stream,
    /// By a file of the guest.
    Download,
    /// By what was made of the request's body, a file of the guest.
    Upload,
    /// By the changes of all sandboxes' states as they come.
    Events,
    /// By the description of all this.
    Description,
}

/// One method of one path.
#[derive(Debug)]
pub struct Route {
    pub method: &'static str,
    /// `{id}` stands for one segment; `{name}` at the end for one or two.
    pub path: &'static str,
    /// Its name in the OpenAPI document.
    pub operation: &'static str,
    pub about: &'static str,
    pub answer: Answer,
    /// The verb it calls, empty if none.
    pub verb: &'static str,
    /// Fields of the verb that the route itself fills.
    pub fixed: &'static [(&'static str, &'static str)],
    /// Fields of the verb that have no meaning here.
    pub hidden: &'static [&'static str],
    /// The status of success.
    pub status: u16,
    /// Whether the work is ended when its client goes away. Otherwise it goes on to its end.
    pub given_up: bool,
}

const fn route(
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    verb: &'static str,
    about: &'static str,
) -> Route {
    Route {
        method,
        path,
        operation,
        about,
        answer: Answer::Verb,
        verb,
        fixed: &[],
        hidden: &[],
        status: 200,
        given_up: false,
    }
}

pub static ROUTES: &[Route] = &[
    Route {
        status: 201,
        given_up: true,
        ..route(
            "POST",
            "/v1/sandboxes",
            "createSandbox",
            "create",
            "Boot a sandbox, or wake one from a snapshot.",
        )
    },
    Route { hidden: &["json"], ..route("GET", "/v1/sandboxes", "listSandboxes", "ls", "All sandboxes.") },
    route("GET", "/v1/sandboxes/{id}", "getSandbox", "get", "A sandbox's document."),
    route("DELETE", "/v1/sandboxes/{id}", "removeSandbox", "rm", "Remove everything of a sandbox."),
    route("POST", "/v1/sandboxes/{id}/pause", "pauseSandbox", "pause", "Freeze a sandbox to disk."),
    route("POST", "/v1/sandboxes/{id}/resume", "resumeSandbox", "resume", "Wake a paused sandbox."),
    route("POST", "/v1/sandboxes/{id}/ping", "pingSandbox", "ping", "Tell that a sandbox is still wanted."),
    Route {
        answer: Answer::Stream,
        hidden: &["json", "stdin"],
        given_up: true,
        ..route(
            "POST",
            "/v1/sandboxes/{id}/exec",
            "execInSandbox",
            "exec",
            "Run a command: events, one a line, the last one `end` or `failed`.",
        )
    },
    Route {
        status: 201,
        ..route(
            "POST",
            "/v1/sandboxes/{id}/snapshot",
            "snapshotSandbox",
            "snapshot",
            "Make a snapshot of a sandbox.",
        )
    },
    Route {
        answer: Answer::Download,
        given_up: true,
        ..route("GET", "/v1/sandboxes/{id}/files", "readFile", "", "A file of the sandbox.")
    },
    Route {
        answer: Answer::Upload,
        given_up: true,
        ..route("PUT", "/v1/sandboxes/{id}/files", "writeFile", "", "Make the body a file of the sandbox.")
    },
    Route {
        status: 201,
        ..route("POST", "/v1/snapshots", "createSnapshot", "snapshot", "Make a snapshot of the sandbox `id`.")
    },
    Route {
        fixed: &[("action", "ls")],
        hidden: &["name"],
        ..route("GET", "/v1/snapshots", "listSnapshots", "template", "All templates.")
    },
    Route {
        fixed: &[("action", "get")],
        ..route("GET", "/v1/snapshots/{name}", "getSnapshot", "template", "A template.")
    },
    Route {
        fixed: &[("action", "rm")],
        ..route("DELETE", "/v1/snapshots/{name}", "removeSnapshot", "template", "Remove a template.")
    },
    Route {
        answer: Answer::Events,
        ..route(
            "GET",
            "/v1/events",
            "watchStates",
            "",
            "The state of every sandbox, then its changes as they come, one a line.",
        )
    },
    Route {
        answer: Answer::Description,
        ..route("GET", "/v1/openapi.json", "describe", "", "This description.")
    },
];

/// What a path's placeholders stand for.
pub type Parameters = Vec<(&'static str, String)>;

/// Why no route answers.
#[derive(Debug)]
pub enum Missing {
    /// There is nothing at this path.
    Path,
    /// There is, for these methods.
    Method(Vec<&'static str>),
    /// A segment of the path cannot be understood.
    Segment,
}

/// The route for a request.
pub fn find(method: &str, path: &str) -> Result<(&'static Route, Parameters), Missing> {
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(raw) = matched(route.path, path) else { continue };
        if route.method != method {
            methods.push(route.method);
            continue;
        }
        let decoded: Result<Parameters, _> = raw
            .into_iter()
            .map(|(name, text)| Ok((name, percent_decode_str(text).decode_utf8()?.into_owned())))
            .collect();
        return Ok((route, decoded.map_err(|_: std::str::Utf8Error| Missing::Segment)?));
    }
    Err(if methods.is_empty() { Missing::Path } else { Missing::Method(methods) })
}

/// The placeholders' texts, if the path is of this pattern.
fn matched<'a>(pattern: &'static str, path: &'a str) -> Option<Vec<(&'static str, &'a str)>> {
    let mut parameters = Vec::new();
    let mut rest = path;
    for part in pattern.split('/').skip(1) {
        rest = rest.strip_prefix('/')?;
        if part == "{name}" {
            let segments = rest.split('/').collect::<Vec<_>>();
            let fits = segments.len() <= 2 && segments.iter().all(|segment| !segment.is_empty());
            return fits.then(|| [parameters, vec![("name", rest)]].concat());
        }
        let (segment, after) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) if !segment.is_empty() => parameters.push((name, segment)),
            None if segment == part => {}
            _ => return None,
        }
        rest = after;
    }
    rest.is_empty().then_some(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_finds_its_route_and_the_parts_it_names() {
        let found = |method: &str, path: &str| {
            let (route, parameters) = find(method, path).ok()?;
            let parameters: Vec<_> =
                parameters.into_iter().map(|(name, text)| format!("{name}={text}")).collect();
            Some(format!("{} {}", route.operation, parameters.join(" ")))
        };
        for (method, path, expected) in [
            ("GET", "/v1/sandboxes", "listSandboxes "),
            ("DELETE", "/v1/sandboxes/sb-1", "removeSandbox id=sb-1"),
            ("POST", "/v1/sandboxes/sb-1/pause", "pauseSandbox id=sb-1"),
            ("GET", "/v1/snapshots/warm", "getSnapshot name=warm"),
            ("GET", "/v1/snapshots/team/warm", "getSnapshot name=team/warm"),
            ("DELETE", "/v1/snapshots/team%2Fwarm", "removeSnapshot name=team/warm"),
        ] {
            assert_eq!(found(method, path).as_deref(), Some(expected), "{method} {path}");
        }
    }

    #[test]
    fn what_is_at_no_path_and_what_a_path_does_not_take_are_told_apart() {
        for path in
            ["/", "/v1", "/v1/sandboxes/", "/v1/sandboxes//pause", "/v1/snapshots/a/b/c", "/v1/sandboxes/x/y"]
        {
            assert!(matches!(find("GET", path), Err(Missing::Path)), "{path}");
        }
        match find("HEAD", "/v1/sandboxes/sb-1") {
            Err(Missing::Method(methods)) => assert_eq!(methods, ["GET", "DELETE"]),
            other => panic!("{other:?}"),
        }
        assert!(matches!(find("GET", "/v1/snapshots/%ff"), Err(Missing::Segment)));
    }
}

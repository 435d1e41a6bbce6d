//! `wrenn template`: list, describe or remove templates.

use store::Templates;
use wire::{Call, Error, Reply, TemplateName, Value};

use crate::snapshot::describe;

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let action: String = call.document.need("action")?;
    let templates = Templates::of(call.host);
    match action.as_str() {
        "ls" => {
            let all = templates.list()?;
            let shown: Result<Vec<Value>, Error> =
                all.iter().map(|each| Ok(describe(each)?.into_value())).collect();
            call.document.set("templates", shown?);
        }
        "get" => {
            let template = templates.get(&name(call)?)?;
            call.document.set("template", describe(&template)?.into_value());
        }
        "rm" => {
            let name = name(call)?;
            let _alone = templates.hold_alone(&name, call.options.wait)?;
            templates.remove(&name)?;
            call.document.set("removed", name.as_str());
        }
        other => return Err(Error::field("action", format!("must be ls, get or rm, not {other:?}"))),
    }
    Ok(Reply::Document)
}

fn name(call: &Call) -> Result<TemplateName, Error> {
    let text: String = call.document.need("name")?;
    TemplateName::new(&text).map_err(|error| Error::field("name", error.message))
}

//! `wrenn create`: boot an image, or wake a snapshot template.

use store::{Sandboxes, Template, Templates};
use sys::lock::Lock;
use wire::{Call, Document, Error, Host, Id, Kind, Options, Reply, TemplateName};

use crate::sandbox::{Sandbox, roll_back};
use crate::{resume, rm, watch};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let id = match call.document.id()? {
        Some(id) => id,
        None => Id::new(&format!("sb-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]))?,
    };
    // Held until the document names the template: from then on that keeps it.
    let held = hold_template(call)?;
    let (document, template) = plan(call.document, call.host, &id)?;

    let lock = call.host.lock(&format!("{id}.op"), call.options.wait)?;
    Sandboxes::of(call.host).reserve(&id)?;
    let mut sandbox = Sandbox::new(call.host, id.clone(), document, call.options);
    let built = sandbox.begin("create", "creating").and_then(|()| {
        drop(held);
        build(&mut sandbox, &template)
    });
    if let Err(error) = built {
        return Err(roll_back(error, rm::remove(&mut sandbox)));
    }
    let (host, options) = (call.host.clone(), call.options);
    call.undo.push(format!("sandbox {id}"), move || undo(&host, id, options, lock));
    sandbox.answer(call);
    Ok(Reply::Document)
}

fn template_name(request: &Document) -> Result<TemplateName, Error> {
    match request.find("spec.template")? {
        Some(name) => Ok(name),
        None => TemplateName::new("minimal"),
    }
}

fn hold_template(call: &Call) -> Result<Lock, Error> {
    Templates::of(call.host).hold(&template_name(call.document)?, call.options.wait)
}

/// The document of the sandbox to be, from the request and the template. Nothing is touched.
fn plan(request: &Document, host: &Host, id: &Id) -> Result<(Document, Template), Error> {
    let mut document = request.clone();
    let map = document.map_mut();
    map.shift_insert(0, "id".into(), id.as_str().into());
    let name = template_name(request)?;
    let template = Templates::of(host).get(&name)?;
    document.set("spec.template", name.as_str());
    for (field, default, least) in
        [("vcpus", 1, 1), ("memory_mib", 512, 32), ("disk_mib", 2048, 0), ("timeout_s", 0, 0)]
    {
        let path = format!("spec.{field}");
        let asked: Option<u64> = request.find(&path)?;
        let value = match (asked, locked(&template, field)?) {
            (Some(asked), Some(fixed)) if asked != fixed => {
                return Err(Error::field(
                    &path,
                    format!("template {name} was taken with {fixed}; {asked} is not possible"),
                ));
            }
            (_, Some(fixed)) => fixed,
            (asked, None) => asked.unwrap_or(default),
        };
        if value < least {
            return Err(Error::field(&path, format!("must be at least {least}, not {value}")));
        }
        document.set(&path, value);
    }
    if let Some(word) = request.find::<String>("spec.on_expiry")?
        && !watch::ON_EXPIRY.contains(&word.as_str())
    {
        let words = watch::ON_EXPIRY.join(" or ");
        return Err(Error::field("spec.on_expiry", format!("must be {words}, not {word:?}")));
    }
    if request.get("spec.user").is_none() {
        document.set("spec.user", "root");
    }
    let _checked: Option<f64> = request.find("spec.ready_timeout_s")?;
    let _checked: Option<Vec<(String, String)>> = request.find("spec.env")?;
    let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    document.set("rootfs", path(template.rootfs()));
    if template.is_snapshot() {
        launch::check_snapshot(&template.dir)?;
        document.set("snapshot", wire::json!({"dir": path(template.dir.clone())}));
    } else {
        kernel(request, host, &mut document)?;
    }
    document.set("spec.vmm", vmm(request, &template)?);
    document.set("created_at", wire::timestamp());
    Ok((document, template))
}

/// The VMM that is asked for or found. A snapshot is loaded by the one that took it and by no other.
fn vmm(request: &Document, template: &Template) -> Result<String, Error> {
    let asked: Option<String> = request.find("spec.vmm")?;
    let fixed = match &template.meta {
        None => None,
        Some(meta) => meta.find("vmm")?.or_else(|| launch::vmm_of_snapshot(&template.dir).map(str::to_owned)),
    };
    let mut request = request.clone();
    match (asked, fixed) {
        (Some(asked), Some(fixed)) if asked != fixed => {
            let why = format!("template {} was taken with {fixed}; {asked} cannot load it", template.name);
            return Err(Error::field("spec.vmm", why));
        }
        (_, Some(fixed)) => request.set("spec.vmm", fixed),
        (_, None) => {}
    }
    Ok(launch::choose(&request)?.name().to_owned())
}

/// What a snapshot template fixes.
fn locked(template: &Template, field: &str) -> Result<Option<u64>, Error> {
    match &template.meta {
        Some(meta) if matches!(field, "vcpus" | "memory_mib") => meta.find(field),
        _ => Ok(None),
    }
}

fn kernel(request: &Document, host: &Host, document: &mut Document) -> Result<(), Error> {
    let kernels = host.root().join("kernels");
    let asked: Option<std::path::PathBuf> = request.find("kernel")?;
    let kernel = asked.unwrap_or_else(|| kernels.join("vmlinux"));
    if !kernel.is_file() {
        let message = format!("kernel: {} does not exist", kernel.display());
        return Err(Error::new(Kind::NotFound, "wrenn.no_kernel", message)
            .detail("docs/image.md says how to make one"));
    }
    document.set("kernel", kernel.to_string_lossy().into_owned());
    let initrd = match request.find::<std::path::PathBuf>("initrd")? {
        Some(initrd) => Some(initrd),
        None => Some(kernels.join("initrd")).filter(|path| path.is_file()),
    };
    if let Some(initrd) = initrd {
        document.set("initrd", initrd.to_string_lossy().into_owned());
    }
    Ok(())
}

fn build(sandbox: &mut Sandbox, template: &Template) -> Result<(), Error> {
    sandbox.step(&cow::TOOL, "create")?;
    if template.is_snapshot() {
        resume::wake(sandbox)?;
    } else {
        sandbox.step(&net::TOOL, "create")?;
        sandbox.step(&launch::TOOL, "boot")?;
        sandbox.step(&guest::TOOL, "ready")?;
        sandbox.step(&guest::TOOL, "init")?;
    }
    sandbox.touch();
    sandbox.settle("running")
}

/// Nobody learned the new sandbox's id: it goes. The lock of its making is still held.
fn undo(host: &Host, id: Id, options: Options, _lock: Lock) -> Result<(), Error> {
    rm::remove(&mut Sandbox::load(host, id, options)?)
}

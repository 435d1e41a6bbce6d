//! Pictures, as SVG.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::path::Path;

use wire::Undo;

use crate::{Error, place};

/// Pixels of a line of a legend.
pub const LINE: u64 = 18;

/// A picture in the making. Sizes are pixels; `y` grows downwards.
#[derive(Debug)]
pub struct Svg(String);

impl Svg {
    /// An empty one, with what a viewer shows as its title.
    pub fn new(width: u64, height: u64, title: impl Display) -> Self {
        let title = escaped(title);
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"12\">\n\
             <title>{title}</title>\n"
        ))
    }

    /// A rectangle.
    pub fn rect(
        &mut self,
        (x, y): (impl Display, impl Display),
        (width, height): (impl Display, impl Display),
        fill: impl Display,
    ) {
        let size = format_args!("width=\"{width}\" height=\"{height}\"");
        let _ = writeln!(self.0, "<rect x=\"{x}\" y=\"{y}\" {size} fill=\"{fill}\"/>");
    }

    /// A dot.
    pub fn circle(&mut self, x: impl Display, y: impl Display, radius: impl Display) {
        let _ = writeln!(self.0, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"/>");
    }

    /// Text that begins (`start`), is centred (`middle`) or ends (`end`) there.
    pub fn text(&mut self, x: impl Display, y: impl Display, anchor: &str, text: impl Display) {
        let text = escaped(text);
        let anchor = match anchor {
            "start" => String::new(),
            other => format!(" text-anchor=\"{other}\""),
        };
        let _ = writeln!(self.0, "<text x=\"{x}\" y=\"{y}\"{anchor}>{text}</text>");
    }

    /// Lines and curves, in SVG's own language; `style` are the element's other attributes.
    pub fn path(&mut self, data: &str, style: &str) {
        if !data.is_empty() {
            let _ = writeln!(self.0, "<path d=\"{data}\" {style}/>");
        }
    }

    /// One entry of a legend: a square of the colour, and what it means.
    pub fn entry(&mut self, x: u64, y: u64, fill: impl Display, text: impl Display) {
        self.rect((x, y), (12, 12), fill);
        self.text(x + 18, y + 11, "start", text);
    }

    /// The picture.
    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn escaped(text: impl Display) -> String {
    text.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Writes a picture whole; one that is there is replaced.
///
/// # Errors
/// `invalid` when something else than a file has the name; what the kernel said.
pub fn write(path: &Path, picture: &str, undo: &mut Undo) -> Result<(), Error> {
    if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::field("svg", format!("{} is not a regular file", path.display())));
    }
    let partial = place::Partial::create(path)?;
    (&partial.file).write_all(picture.as_bytes()).map_err(Error::io("write", path))?;
    partial.replace(undo)
}

//! `wrenn-snap map`: a picture of where every region of memory comes from.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Undo, Verb};

use crate::header::Header;
use crate::svg::{LINE, Svg};
use crate::{Ranges, directory, svg};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("dir", Type::Path, "the snapshot's directory"),
        Field::need("svg", Type::Path, "the picture to write; one that is there is replaced"),
    ],
    reply: &[Field::need("builds", Type::Integer, "how many diff files memory comes from")],
    example: "wrenn-snap map dir=/tmp/snapshot svg=/tmp/memory.svg",
    ..Verb::new("map", "draw which generation every region of memory comes from", run)
};

/// Cells of a row, and rows.
const COLUMNS: u64 = 128;
const ROWS: u64 = 64;
/// Pixels of a cell's side.
const CELL: u64 = 7;

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let fields = call.fields();
    let (dir, svg): (PathBuf, PathBuf) = (fields.need("dir")?, fields.need("svg")?);
    let builds = map(&dir, &svg, call.undo)?;
    call.answer("builds", builds);
    Ok(Reply::Document)
}

/// Draws the snapshot in `dir`. Returns how many builds it is made of.
///
/// # Errors
/// `not_found` when there is no snapshot, `corrupt` when its header is; what the kernel said.
pub fn map(dir: &Path, picture: &Path, undo: &mut Undo) -> Result<u64, wire::Error> {
    let header = directory::read_header(dir)?;
    let builds = directory::builds_by_age(dir, &header);
    let working_set = directory::working_set(dir, &header).map_or_else(Ranges::new, |set| set.likely());
    svg::write(picture, &draw(&header, &builds, &working_set), undo)?;
    Ok(builds.len() as u64)
}

/// The colour of a build: from blue, the oldest, to red, the newest.
fn colour(builds: &[Uuid], build: Uuid) -> String {
    match builds.iter().position(|other| *other == build) {
        None => "#eceff1".into(),
        Some(index) => format!("hsl({},70%,50%)", 220 - 220 * (index + 1) / builds.len().max(1)),
    }
}

fn draw(header: &Header, builds: &[Uuid], working_set: &Ranges) -> String {
    let cells = (COLUMNS * ROWS).min(header.size / header.block_size);
    let rows = cells.div_ceil(COLUMNS);
    let legend = rows * CELL + 20;
    let lines = builds.len() as u64 + 1 + u64::from(!working_set.is_empty());
    let Header { generation, build, .. } = header;
    let title = format_args!("{} MiB of memory, generation {generation}, build {build}", header.size >> 20);
    let mut svg = Svg::new(COLUMNS * CELL, legend + lines * LINE, title);
    let sources: Vec<Uuid> = (0..cells).map(|cell| source_of(header, cell, cells)).collect();
    for (row, sources) in sources.chunks(COLUMNS as usize).enumerate() {
        let mut column = 0;
        for run in sources.chunk_by(|one, other| one == other) {
            let place = (column * CELL, row as u64 * CELL);
            svg.rect(place, (run.len() as u64 * CELL, CELL), colour(builds, run[0]));
            column += run.len() as u64;
        }
    }
    if !working_set.is_empty() {
        draw_working_set(&mut svg, header, cells, working_set, legend + (lines - 1) * LINE);
    }
    let entries = builds.iter().copied().chain([Uuid::nil()]);
    for (index, build) in entries.enumerate() {
        let y = legend + index as u64 * LINE;
        let bytes: u64 = header.records.iter().filter(|r| r.build == build).map(|r| r.length).sum();
        let name = if build.is_nil() { "zeros".to_owned() } else { build.to_string() };
        svg.entry(0, y, colour(builds, build), format_args!("{name} {} KiB", bytes >> 10));
    }
    svg.finish()
}

/// Marks the cells that a restore asks for first, and says so at `y`.
fn draw_working_set(svg: &mut Svg, header: &Header, cells: u64, working_set: &Ranges, y: u64) {
    let marked = |cell: &u64| {
        working_set.clipped(edge(header, *cell, cells)..edge(header, cell + 1, cells)).next().is_some()
    };
    for cell in (0..cells).filter(marked) {
        let (x, y) = (cell % COLUMNS * CELL + CELL / 2, cell / COLUMNS * CELL + CELL / 2);
        svg.circle(x, y, "1.5");
    }
    svg.circle(6, y + 6, 3);
    svg.text(18, y + 11, "start", format_args!("working set {} KiB", working_set.bytes() >> 10));
}

/// Where a cell begins in memory.
fn edge(header: &Header, cell: u64, cells: u64) -> u64 {
    (u128::from(header.size) * u128::from(cell) / u128::from(cells)) as u64
}

/// Where most of a cell's bytes come from. Anything stored is seen beside zeros.
fn source_of(header: &Header, cell: u64, cells: u64) -> Uuid {
    let mut shares: Vec<(u64, Uuid)> = Vec::new();
    for record in header
        .range(edge(header, cell, cells), edge(header, cell + 1, cells))
        .filter(|record| !record.is_zero())
    {
        match shares.iter_mut().find(|(_, build)| *build == record.build) {
            Some((bytes, _)) => *bytes += record.length,
            None => shares.push((record.length, record.build)),
        }
    }
    shares.into_iter().max().map_or(Uuid::nil(), |(_, build)| build)
}

//! A trace as a picture: which address was asked for when, what was loaded ahead meanwhile, and how long each fault waited.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use snap::svg::{LINE, Svg};

use crate::histogram::Latencies;
use crate::trace::{Kind, Record, Trace};

const WIDTH: u64 = 1080;
/// Pixels left of both plots.
const LEFT: u64 = 90;
const PLOT: u64 = 900;
/// Where the plot of addresses begins, and its height.
const TOP: u64 = 84;
const HEIGHT: u64 = 420;
/// The plot of latencies.
const STRIP: u64 = TOP + HEIGHT + 44;
const STRIP_HEIGHT: u64 = 140;
/// Pixels of a dot's side: what falls into one is drawn once.
const DOT: u64 = 3;
/// Pixels over which the median latency is taken.
const MEDIAN: u64 = 15;

/// The kinds, their colours (most are Okabe's and Ito's, for all eyes) and what they are called.
const KINDS: [(Kind, &str, &str); 9] = [
    (Kind::Prefetch, "#b5c4bb", "loaded ahead"),
    (Kind::Replay, "#f3cf8a", "working set"),
    (Kind::Remove, "#000000", "discarded"),
    (Kind::Image, "#0072b2", "fault: image"),
    (Kind::Zero, "#56b4e9", "fault: zeros"),
    (Kind::Refill, "#d55e00", "fault: discarded before"),
    (Kind::Exists, "#cc79a7", "fault: there already"),
    (Kind::Unmapped, "#999999", "fault: unmapped"),
    (Kind::Poison, "#882255", "fault: poisoned"),
];

/// The line of what was loaded ahead.
const LINE_COLOUR: &str = "#009e73";

/// Draws a trace, as SVG.
pub fn draw(trace: &Trace) -> String {
    let scale = Scale::of(trace);
    let mut svg = Svg::new(WIDTH, STRIP + STRIP_HEIGHT + 50, title(trace));
    svg.rect((0, 0), (WIDTH, STRIP + STRIP_HEIGHT + 50), "#ffffff");
    svg.text(LEFT, 24, "start", title(trace));
    legend(&mut svg, trace);
    axes(&mut svg, &scale, is_ahead(trace));
    addresses(&mut svg, &scale, trace);
    progress(&mut svg, &scale, trace);
    latencies(&mut svg, &scale, trace);
    svg.finish()
}

fn title(trace: &Trace) -> String {
    let mut latencies = Latencies::default();
    let faults = trace.records.iter().filter(|record| record.kind.is_fault());
    let count = faults.inspect(|fault| latencies.add(fault.latency)).count();
    let said = latencies.to_json();
    let waited = match count {
        0 => String::new(),
        _ => format!(", p50 {} µs, p99 {} µs, max {} µs", said["p50"], said["p99"], said["max"]),
    };
    let cut = if trace.full { " (file full: the beginning only)" } else { "" };
    let begin = wire::timestamp_at(trace.header.connected.as_millis() as u64);
    format!("{count} page faults in {} MiB since {begin}{waited}{cut}", trace.header.size >> 20)
}

/// What a pixel is worth.
struct Scale {
    /// Nanoseconds from left to right.
    time: f64,
    /// Bytes from bottom to top.
    memory: f64,
    /// The shortest and the longest latency of the strip, as powers of ten of nanoseconds.
    decades: (i32, i32),
}

impl Scale {
    fn of(trace: &Trace) -> Self {
        let end = trace.records.iter().map(|record| record.at + record.latency).max().unwrap_or_default();
        let faults = || trace.records.iter().filter(|record| record.kind.is_fault());
        let decade =
            |latency: Option<Duration>| (latency.unwrap_or_default().as_nanos().max(1) as f64).log10();
        let least = decade(faults().map(|fault| fault.latency).min()).floor() as i32;
        let most = decade(faults().map(|fault| fault.latency).max()).floor() as i32 + 1;
        Self {
            time: (end.as_nanos() as f64).max(1.0),
            memory: trace.header.size as f64,
            decades: (least, most.max(least + 1)),
        }
    }

    fn x(&self, at: Duration) -> u64 {
        LEFT + (at.as_nanos() as f64 / self.time * PLOT as f64) as u64
    }

    fn y(&self, offset: u64) -> u64 {
        TOP + HEIGHT - (offset as f64 / self.memory * HEIGHT as f64) as u64
    }

    fn latency_y(&self, latency: Duration) -> u64 {
        let (least, most) = self.decades;
        let share = ((latency.as_nanos().max(1) as f64).log10() - f64::from(least)) / f64::from(most - least);
        STRIP + STRIP_HEIGHT - (share.clamp(0.0, 1.0) * STRIP_HEIGHT as f64) as u64
    }
}

/// What there is in this trace, in rows of four.
fn legend(svg: &mut Svg, trace: &Trace) {
    let seen = |kind: Kind| trace.records.iter().filter(|record| record.kind == kind).count();
    let entries = KINDS.into_iter().filter_map(|(kind, colour, name)| match seen(kind) {
        0 => None,
        count => Some((colour, format!("{name} ({count})"))),
    });
    let line = is_ahead(trace).then(|| (LINE_COLOUR, "all loaded ahead, right scale".to_owned()));
    for (index, (colour, name)) in entries.chain(line).enumerate() {
        let (column, row) = (index as u64 % 4, index as u64 / 4);
        svg.entry(LEFT + column * 235, 36 + row * LINE, colour, name);
    }
}

/// Whether anything was loaded ahead.
fn is_ahead(trace: &Trace) -> bool {
    trace.records.iter().any(|record| matches!(record.kind, Kind::Replay | Kind::Prefetch))
}

/// Frames, ticks and what they mean.
fn axes(svg: &mut Svg, scale: &Scale, ahead: bool) {
    let mut grid = String::new();
    let step = round(scale.time / 8.0);
    let (unit, name) = if scale.time < 10e9 { (1e6, "ms") } else { (1e9, "s") };
    let bottom = STRIP + STRIP_HEIGHT;
    for index in 0..=(scale.time / step) as u64 {
        let x = scale.x(Duration::from_nanos((index as f64 * step) as u64));
        let _ = write!(grid, "M{x} {TOP}v{HEIGHT}M{x} {STRIP}v{STRIP_HEIGHT}");
        svg.text(x, bottom + 18, "middle", number(index as f64 * step / unit));
    }
    svg.text(LEFT + PLOT / 2, bottom + 38, "middle", format_args!("time since the VMM connected, {name}"));
    for eighth in 0..=8 {
        let y = TOP + HEIGHT - HEIGHT * eighth / 8;
        let _ = write!(grid, "M{LEFT} {y}h{PLOT}");
        svg.text(LEFT - 8, y + 4, "end", number(scale.memory / 8.0 * eighth as f64 / 1048576.0));
        if ahead {
            svg.text(LEFT + PLOT + 8, y + 4, "start", format_args!("{}%", number(eighth as f64 * 12.5)));
        }
    }
    for power in scale.decades.0..=scale.decades.1 {
        let latency = Duration::from_nanos(10u64.saturating_pow(power.max(0) as u32));
        let y = scale.latency_y(latency);
        let _ = write!(grid, "M{LEFT} {y}h{PLOT}");
        let text = match power {
            ..3 => format!("{} ns", latency.as_nanos()),
            3..6 => format!("{} µs", latency.as_micros()),
            6..9 => format!("{} ms", latency.as_millis()),
            _ => format!("{} s", latency.as_secs()),
        };
        svg.text(LEFT - 8, y + 4, "end", text);
    }
    svg.path(&grid, "stroke=\"#e4e4e4\" fill=\"none\"");
    svg.text(LEFT - 8, TOP - 12, "end", "memory, MiB");
    svg.text(LEFT, STRIP - 8, "start", "how long each fault waited; the line is the median");
}

/// The next of 1, 2, 5, 10, 20, …
fn round(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= least).unwrap_or(power)
}

/// Without digits that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The upper plot: what was loaded ahead and discarded as areas, faults as dots over them.
fn addresses(svg: &mut Svg, scale: &Scale, trace: &Trace) {
    for (kind, colour, _) in KINDS {
        let mut cells: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for record in trace.records.iter().filter(|record| record.kind == kind) {
            let (x, end) = (dot(scale.x(record.at)), scale.x(record.at + record.latency));
            let area = !kind.is_fault();
            let top = dot(scale.y(record.offset + if area { record.length } else { 0 }));
            let height = if area { dot(scale.y(record.offset)) - top + DOT } else { DOT };
            let width = if area { dot(end) - x + DOT } else { DOT };
            (x..x + width).step_by(DOT as usize).for_each(|x| {
                let tallest = cells.entry((x, top)).or_default();
                *tallest = height.max(*tallest);
            });
        }
        svg.path(&columns(&cells), &format!("stroke=\"{colour}\" stroke-width=\"{DOT}\" fill=\"none\""));
    }
}

/// Strokes downwards from each place, each as long as it says; those that overlap are one.
fn columns(cells: &BTreeMap<(u64, u64), u64>) -> String {
    let mut data = String::new();
    let mut open: Option<(u64, u64, u64)> = None;
    let mut stroke = |x: u64, top: u64, end: u64| {
        let _ = write!(data, "M{x} {top}v{}", end - top);
    };
    for (&(x, top), height) in cells {
        open = match open {
            Some((at, from, end)) if at == x && top <= end => Some((x, from, end.max(top + height))),
            last => {
                if let Some((x, from, end)) = last {
                    stroke(x, from, end);
                }
                Some((x, top, top + height))
            }
        };
    }
    if let Some((x, from, end)) = open {
        stroke(x, from, end);
    }
    data
}

/// To the grid of dots.
fn dot(pixel: u64) -> u64 {
    pixel / DOT * DOT
}

/// How much of memory was loaded ahead by when.
fn progress(svg: &mut Svg, scale: &Scale, trace: &Trace) {
    let mut ahead: Vec<&Record> =
        trace.records.iter().filter(|record| matches!(record.kind, Kind::Replay | Kind::Prefetch)).collect();
    if ahead.is_empty() {
        return;
    }
    ahead.sort_by_key(|record| record.at + record.latency);
    let mut data = format!("M{} {}", scale.x(Duration::ZERO), scale.y(0));
    let (mut loaded, mut last) = (0u64, (0, 0));
    for record in ahead {
        loaded = loaded.saturating_add(record.length).min(trace.header.size);
        let point = (scale.x(record.at + record.latency), scale.y(loaded));
        if point != last {
            let _ = write!(data, "L{} {}", point.0, point.1);
            last = point;
        }
    }
    let _ = write!(data, "H{}", LEFT + PLOT);
    svg.path(&data, &format!("stroke=\"{LINE_COLOUR}\" stroke-width=\"2\" fill=\"none\""));
}

/// The lower plot.
fn latencies(svg: &mut Svg, scale: &Scale, trace: &Trace) {
    let faults = || trace.records.iter().filter(|record| record.kind.is_fault());
    for (kind, colour, _) in KINDS {
        let cells = faults().filter(|fault| fault.kind == kind);
        let cells: BTreeMap<_, _> =
            cells.map(|fault| ((dot(scale.x(fault.at)), dot(scale.latency_y(fault.latency))), DOT)).collect();
        svg.path(&columns(&cells), &format!("stroke=\"{colour}\" stroke-width=\"{DOT}\" fill=\"none\""));
    }
    let mut buckets: BTreeMap<u64, Latencies> = BTreeMap::new();
    faults().for_each(|fault| buckets.entry(scale.x(fault.at) / MEDIAN).or_default().add(fault.latency));
    let medians: String = buckets
        .iter()
        .map(|(bucket, latencies)| {
            format!("M{} {}h{MEDIAN}", bucket * MEDIAN, scale.latency_y(latencies.median()))
        })
        .collect();
    svg.path(&medians, "stroke=\"#000000\" stroke-width=\"2\" fill=\"none\"");
}

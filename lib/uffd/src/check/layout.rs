//! Memory of other shapes.

use super::model::GRAIN;
use super::scenario::{Layout, Scenario, Span, Unmet};
use super::stage::{Stage, send};
use super::vm::Vm;

const HUGE: usize = 2 << 20;

const HUGE_PAGES: Layout = Layout {
    regions: &[Span { pages: 4, gap: 1, at: 0 }, Span { pages: 3, gap: 0, at: 4 }],
    page_size: HUGE,
    image: 7,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        layout: Layout {
            regions: &[Span { pages: 700, gap: 300, at: 0 }, Span { pages: 900, gap: 0, at: 700 }],
            page_size: GRAIN,
            image: 1600,
        },
        ..Scenario::new("regions-gap", "two regions with a hole between their addresses are both exact", gap)
    },
    Scenario {
        layout: Layout {
            regions: &[Span { pages: 512, gap: 64, at: 1024 }, Span { pages: 1024, gap: 0, at: 0 }],
            page_size: GRAIN,
            image: 1536,
        },
        ..Scenario::new(
            "regions-order",
            "a region's content begins at its own offset, whatever the order of regions and offsets",
            all,
        )
    },
    Scenario {
        layout: Layout { regions: &[Span { pages: 1024, gap: 0, at: 256 }], page_size: GRAIN, image: 2048 },
        ..Scenario::new(
            "offset",
            "memory that is only a part of the image, not from its beginning, is exact",
            all,
        )
    },
    Scenario::new(
        "page-size-kib",
        "a handshake with the older name page_size_kib alone (in bytes) is understood",
        older_name,
    ),
    Scenario::new(
        "handshake-pieces",
        "a handshake that comes in pieces, its descriptor with the last, is understood",
        pieces,
    ),
    Scenario {
        layout: HUGE_PAGES,
        ..Scenario::new("huge-pages", "pages of 2 MiB are filled whole and exact", all)
    },
    Scenario {
        layout: HUGE_PAGES,
        ..Scenario::new(
            "huge-discard",
            "a page of 2 MiB that was discarded reads zero, and its neighbours the image",
            huge_discard,
        )
    },
];

fn all(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    vm.expect_images(0..vm.pages())
}

fn gap(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    // Around the hole first: a server that reckons from the first region's address errs there.
    vm.expect_images((690..710).rev())?;
    vm.expect_images((0..vm.pages()).rev())?;
    let hole = 700 * vm.page_size..1000 * vm.page_size;
    match hole.step_by(512).find(|&offset| vm.memory.load(offset) != 0) {
        None => Ok(()),
        Some(offset) => {
            Err(Unmet::Failed(format!("something was written between the regions, at {offset:#x}")))
        }
    }
}

fn older_name(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet_with(&["page_size_kib"])?;
    vm.expect_images(0..vm.pages())
}

fn pieces(stage: &Stage) -> Result<(), Unmet> {
    let vm = Vm::new(stage)?;
    let mut stream = stage.connect()?;
    let message = vm.message(&["page_size", "page_size_kib"]);
    let (first, last) = message.as_bytes().split_at(message.len() / 2);
    send(&mut stream, first, None)?;
    // The next goes out when the server has read this one. One that waits for more than that reads both at once.
    let patience = std::time::Instant::now() + stage.limit / 4;
    while sys::fdpass::is_unread(&stream)? && std::time::Instant::now() < patience {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    if let Err(error) = send(&mut stream, last, Some(&vm.uffd)) {
        return Err(Unmet::Failed(format!("the server takes no second piece of the handshake: {error}")));
    }
    let vm = vm.over(stream);
    vm.expect_images(0..vm.pages())
}

fn huge_discard(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    vm.expect_image(1)?;
    for page in [1, 4] {
        match vm.discard(page..page + 1) {
            Ok(()) => {}
            // Kernels before 5.18.
            Err(Unmet::Failed(why)) => {
                return Err(Unmet::Skipped(format!("this kernel discards no huge pages: {why}")));
            }
            Err(other) => return Err(other),
        }
    }
    vm.expect_zeros([1, 4])?;
    vm.expect_images([0, 2, 3, 5, 6])
}

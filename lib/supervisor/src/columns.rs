//! Lines of cells as aligned columns.

/// Each line of cells as one of text. The first `names` columns are flush left, what follows are numbers, flush right.
pub fn render<const N: usize>(lines: &[[String; N]], names: usize) -> String {
    let chars = |cell: &str| cell.chars().count();
    let widths: [usize; N] =
        std::array::from_fn(|column| lines.iter().map(|line| chars(&line[column])).max().unwrap_or(0));
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let padded =
                if column < names { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            text.push_str(&padded);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

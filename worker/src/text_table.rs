//! Aligned tables for a terminal.

/// Rows of cells under headers. Columns of numbers are right-aligned.
#[derive(Clone, Debug, Default)]
pub struct TextTable {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
    numeric: Vec<bool>,
    cell_chars_max: usize,
}

/// The widest a cell is shown on a terminal; longer ones are cut with `…`.
pub const CELL_CHARS_MAX: usize = 60;

impl TextTable {
    /// A table without rows.
    pub fn new(headers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let headers: Vec<String> = headers.into_iter().map(Into::into).collect();
        let numeric = vec![false; headers.len()];
        Self { headers, rows: Vec::new(), numeric, cell_chars_max: usize::MAX }
    }

    /// Cuts the cells of rows that are added from now on.
    #[must_use]
    pub fn for_terminal(mut self) -> Self {
        self.cell_chars_max = CELL_CHARS_MAX;
        self
    }

    /// Right-aligns these columns.
    #[must_use]
    pub fn numeric(mut self, columns: impl IntoIterator<Item = usize>) -> Self {
        for column in columns {
            if let Some(flag) = self.numeric.get_mut(column) {
                *flag = true;
            }
        }
        self
    }

    /// Adds a row; missing cells are empty, cells beyond the headers are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let mut cells: Vec<String> = cells.into_iter().map(|c| shown(&c.into(), self.cell_chars_max)).collect();
        cells.resize(self.headers.len(), String::new());
        self.rows.push(cells);
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows under a line of headers and a rule, as psql shows them.
    #[must_use]
    pub fn with_rule(&self) -> String {
        let widths = self.widths();
        let line = |cells: &[String]| {
            let cells: Vec<_> = cells.iter().enumerate().map(|(i, c)| pad(c, widths[i], self.numeric[i])).collect();
            format!(" {}", cells.join(" | ")).trim_end().to_owned() + "\n"
        };
        let rule: Vec<_> = widths.iter().map(|w| "-".repeat(w + 2)).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}{}\n{rows}", line(&self.headers), rule.join("+"))
    }

    /// The rows in columns two spaces apart, with a line of headers.
    #[must_use]
    pub fn plain(&self) -> String {
        let widths = self.widths();
        let line = |cells: &Vec<String>| {
            let cells: Vec<_> = cells.iter().enumerate().map(|(i, c)| pad(c, widths[i], self.numeric[i])).collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        std::iter::once(&self.headers).chain(&self.rows).map(line).collect()
    }

    fn widths(&self) -> Vec<usize> {
        let width = |i: usize| {
            let cells = self.rows.iter().map(|row| row[i].chars().count());
            cells.chain([self.headers[i].chars().count()]).max().unwrap_or(0)
        };
        (0..self.headers.len()).map(width).collect()
    }
}

fn pad(cell: &str, width: usize, right: bool) -> String {
    if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
}

/// One line of at most so many characters, without any that would move a terminal's cursor.
fn shown(cell: &str, chars_max: usize) -> String {
    let mut out = String::new();
    for (count, c) in cell.chars().enumerate() {
        if count == chars_max {
            out.pop();
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = TextTable::new(["channel", "n"]).numeric([1]);
        table.row(["Apple", "7"]);
        table.row(["Google ü", "1234"]);
        assert_eq!(table.with_rule(), " channel  |    n\n----------+------\n Apple    |    7\n Google ü | 1234\n");
        assert_eq!(table.plain(), "channel      n\nApple        7\nGoogle ü  1234\n");
    }

    #[test]
    fn a_cell_can_not_break_the_line_or_the_terminal() {
        let mut table = TextTable::new(["a"]).for_terminal();
        table.row(["x\n\u{1b}[2Jy"]);
        table.row(["z".repeat(1000)]);
        let text = table.plain();
        assert_eq!(text.lines().count(), 3);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(text.lines().all(|line| line.chars().count() <= CELL_CHARS_MAX));
    }
}

//! Text from outside, made safe and short.

/// Shows control, bidirectional and invisible characters as escapes.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_hidden(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Characters that are not seen themselves but change how others look.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
        | '\u{200b}'..='\u{200f}'   // zero width, and marks of direction
        | '\u{2028}'..='\u{202e}'   // separators, and embeddings of direction
        | '\u{2060}'..='\u{206f}'   // joiners, and isolates of direction
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Columns a text takes. Errs to the wide side, since a line that is too short does no harm.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    let wide = matches!(c,
        '\u{1100}'..='\u{115f}' | '\u{231a}'..='\u{231b}' | '\u{23e9}'..='\u{23f3}'
        | '\u{2614}'..='\u{27bf}' | '\u{2b1b}'..='\u{2b55}' | '\u{2e80}'..='\u{a4cf}'
        | '\u{a960}'..='\u{a97f}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}'
        | '\u{fe10}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}' | '\u{ffe0}'..='\u{ffe6}'
        | '\u{16fe0}'..='\u{18fff}' | '\u{1b000}'..='\u{1b2ff}' | '\u{1f000}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}');
    if wide { 2 } else { 1 }
}

/// At most `columns` wide; what is missing is marked by `…`.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let fits = |c: &char| {
        let fits = char_width(*c) <= left;
        left = left.saturating_sub(char_width(*c));
        fits
    };
    let mut short: String = text.chars().take_while(fits).collect();
    if columns > 0 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        let cases = [
            ("plain ünïcode 名前", "plain ünïcode 名前"),
            ("a\nb\tc", "a\\nb\\tc"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{202e}evil", "\\u{202e}evil"),
            ("\u{2066}x\u{200b}", "\\u{2066}x\\u{200b}"),
            ("\u{9b}31m", "\\u{9b}31m"),
        ];
        for (text, want) in cases {
            assert_eq!(clean(text), want, "{text:?}");
        }
    }

    #[test]
    fn cuts() {
        let cases = [
            ("short", 5, "short"),
            ("longer", 5, "long…"),
            ("名前名前", 5, "名前…"),
            ("名前名前", 4, "名…"),
            ("x", 0, ""),
            ("xy", 1, "…"),
        ];
        for (text, columns, want) in cases {
            assert_eq!(cut(text, columns), want, "{text} in {columns}");
            assert!(width(&cut(text, columns)) <= columns);
        }
    }
}

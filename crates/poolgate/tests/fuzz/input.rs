//! What the targets share: one input makes several cases, the same each time.

use poolgate_core::account::Surface;

pub const SURFACES: [Surface; 5] =
    [Surface::Responses, Surface::Compact, Surface::Chat, Surface::Messages, Surface::CountTokens];

/// The first byte of an input says how the rest arrives.
pub fn pieces(input: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (&how, rest) = input.split_first()?;
    Some((rest, cut(how, rest)))
}

/// Pieces of 1 to 64 bytes, `how` many depends on; `1` gives them byte by byte, as a corpus that
/// people read says.
pub fn cut(how: u8, mut rest: &[u8]) -> Vec<&[u8]> {
    let mut state = u32::from(how);
    let longest = 1 + u32::from(how.wrapping_sub(b'1') % 64);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = ((state >> 16) % longest + 1) as usize;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

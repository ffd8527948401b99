//! The plain text of a string: where it ends, found by blocks of 64 bytes with the widest registers
//! that the processor has.
//!
//! Code in a prompt has an escape in every other block, so they are not gone to one by one: a mask
//! says which bytes of a block are escaped, as simdjson does it (Langdale and Lemire, "Parsing Gigabytes
//! of JSON per Second", 2019, §3.1.1; with a subtraction in its later versions).

use fearless_simd::{Level, dispatch, prelude::*, u8x16, u8x64};

const BLOCK: usize = 64;

/// Where plain text ends that `at` is in: at the quote, at a byte that may not be there, or at the
/// backslash of an escape that is not a letter's, or not whole; else at the end of `bytes`.
pub fn end(bytes: &[u8], at: usize) -> usize {
    let at = match bytes.len() - at {
        BLOCK.. => dispatch!(Level::new(), simd => end_in_blocks(simd, bytes, at)),
        _ => Ok(at),
    };
    at.map_or_else(|end| end, |at| end_bytewise(bytes, at))
}

/// `Ok`: not in the whole blocks, and so far they were looked through.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "compiled for the processor's features where it is called"
)]
fn end_in_blocks<S: Simd>(simd: S, bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    let mut cut = false;
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk::<BLOCK>) {
        let block = u8x64::from_slice(simd, block);
        let is = |byte| block.simd_eq(byte).to_bitmask();
        let (quotes, backslashes) = (is(b'"'), is(b'\\'));
        let mut ends = quotes | block.simd_lt(0x20).to_bitmask();
        let mut wrong = 0;
        if backslashes != 0 || cut {
            let escaped = escaped(backslashes, &mut cut);
            let letters = is(b'n') | is(b't') | is(b'r') | is(b'/') | is(b'b') | is(b'f');
            wrong = escaped & !(quotes | backslashes | letters);
            ends = (ends & !(quotes & escaped)) | wrong;
        }
        if ends != 0 {
            let end = ends.trailing_zeros();
            // The escape begins before the byte that is wrong.
            return Err(at + end as usize - usize::from(wrong >> end & 1 == 1));
        }
        at += BLOCK;
    }
    Ok(at - usize::from(cut))
}

/// Which bytes of a block a backslash stands before that is not escaped itself. `cut`: the last byte
/// of the block before was such a backslash, and whether the last one of this block is.
#[inline]
fn escaped(backslashes: u64, cut: &mut bool) -> u64 {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let before = u64::from(*cut);
    let starts = backslashes & !before;
    // The subtraction carries through each run of backslashes; where it ends up tells a run that
    // begins at an odd place from one at an even place, and so every second backslash from the others.
    let alternate = ((starts << 1) | ODD).wrapping_sub(starts) ^ ODD;
    *cut = (alternate & backslashes) >> 63 == 1;
    alternate ^ (backslashes | before)
}

fn end_bytewise(bytes: &[u8], mut at: usize) -> usize {
    while let Some(byte) = bytes.get(at) {
        if !matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            at += 1;
        } else if is_escape_at(bytes, at) {
            at += 2;
        } else {
            break;
        }
    }
    at
}

/// A backslash and a letter that stand for one character, whole.
#[inline]
pub fn is_escape_at(bytes: &[u8], at: usize) -> bool {
    matches!(bytes.get(at..at + 2), Some([b'\\', byte]) if is_escape(*byte))
}

pub fn is_escape(byte: u8) -> bool {
    const ESCAPES: [bool; 256] = {
        let mut escapes = [false; 256];
        let mut rest: &[u8] = b"n\"\\t/rbf";
        while let [byte, more @ ..] = rest {
            escapes[*byte as usize] = true;
            rest = more;
        }
        escapes
    };
    ESCAPES[usize::from(byte)]
}

/// One bit per byte that ends plain text, the first byte's lowest: quote, backslash, control.
#[inline]
pub fn specials(sixteen: &[u8; 16]) -> u64 {
    // For so few bytes what every processor has is as fast, and needs no asking which it is.
    dispatch!(Level::baseline(), simd => {
        let bytes = u8x16::from_slice(simd, sixteen);
        let specials = bytes.simd_eq(b'"') | bytes.simd_eq(b'\\') | bytes.simd_lt(0x20);
        specials.to_bitmask()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_special_bytes_wherever_they_stand() {
        for at in 0..16 {
            for byte in 0..=255 {
                let mut bytes = [b'x'; 16];
                bytes[at] = byte;
                let special = matches!(byte, b'"' | b'\\' | 0..=0x1f);
                assert_eq!(specials(&bytes), u64::from(special) << at, "{byte} at {at}");
            }
        }
    }

    /// By the widest registers, as it is called, and by narrower ones.
    fn ends(text: &[u8], from: usize) -> Vec<usize> {
        let rest =
            |at: Result<usize, usize>| at.map_or_else(|end| end, |at| end_bytewise(text, at));
        let mut ends = vec![end(text, from)];
        ends.push(dispatch!(Level::baseline(), simd => rest(end_in_blocks(simd, text, from))));
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = Level::new().as_avx2() {
            ends.push(rest(end_in_blocks(simd, text, from)));
        }
        ends
    }

    fn all_are(ends: &[usize], want: usize) -> bool {
        ends.iter().all(|end| *end == want)
    }

    /// Each byte alone and behind one to three backslashes, at each place of two blocks and a rest.
    #[test]
    fn blocks_end_where_bytes_do() {
        for at in 0..2 * BLOCK + 2 {
            for byte in 0..=255 {
                for backslashes in 0..4 {
                    let mut text = vec![b'x'; at];
                    text.extend(std::iter::repeat_n(b'\\', backslashes));
                    text.push(byte);
                    text.extend([b'y'; BLOCK]);
                    let want = end_bytewise(&text, 0);
                    assert!(all_are(&ends(&text, 0), want), "{byte} behind {backslashes} at {at}");
                    text.truncate(2 * BLOCK);
                    let want = end_bytewise(&text, 0);
                    let found = ends(&text, 0);
                    assert!(all_are(&found, want), "{byte} behind {backslashes} at {at}, cut");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_where_its_bytes_do(
            text in prop::collection::vec(prop::sample::select(b"xxxxxxxxn\\\\\\u\"\n".to_vec()), 0..400),
            from in 0_usize..400,
        ) {
            let from = from.min(text.len());
            let found = ends(&text, from);
            prop_assert!(all_are(&found, end_bytewise(&text, from)), "{:?}", found);
        }
    }
}

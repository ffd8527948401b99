//! The scenarios that come with the program: name and text.

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../../scenarios/", $name, ".toml")))),*]
    };
}

pub const SHIPPED: [(&str, &str); 10] = shipped![
    "equal",
    "quiet",
    "mixed",
    "one-big",
    "three",
    "bursty-team",
    "gated",
    "overload",
    "round-the-clock",
    "shared",
];

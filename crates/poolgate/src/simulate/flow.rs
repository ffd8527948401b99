//! The largest flow through a network, by Dinic's method, in whole numbers.

#[derive(Debug, Default)]
pub struct Network {
    /// Edge `i ^ 1` is the reverse of edge `i`.
    edges: Vec<Edge>,
    /// Edges that leave each node.
    leaving: Vec<Vec<usize>>,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    to: usize,
    left: u64,
}

pub const UNLIMITED: u64 = u64::MAX / 4;

impl Network {
    pub fn node(&mut self) -> usize {
        self.leaving.push(Vec::new());
        self.leaving.len() - 1
    }

    pub fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        self.leaving[from].push(self.edges.len());
        self.edges.push(Edge { to, left: capacity });
        self.leaving[to].push(self.edges.len());
        self.edges.push(Edge { to: from, left: 0 });
    }

    /// What goes through beyond what was sent before; edges may be added in between.
    pub fn largest_flow(&mut self, from: usize, to: usize) -> u64 {
        let mut flow = 0;
        loop {
            let distance = self.distances(from);
            if distance[to] == usize::MAX {
                return flow;
            }
            let mut next = vec![0; self.leaving.len()];
            loop {
                let pushed = self.push(from, to, UNLIMITED, &distance, &mut next);
                if pushed == 0 {
                    break;
                }
                flow += pushed;
            }
        }
    }

    fn distances(&self, from: usize) -> Vec<usize> {
        let mut distance = vec![usize::MAX; self.leaving.len()];
        distance[from] = 0;
        let mut queue = std::collections::VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            for edge in self.leaving[node].iter().map(|i| self.edges[*i]) {
                if edge.left > 0 && distance[edge.to] == usize::MAX {
                    distance[edge.to] = distance[node] + 1;
                    queue.push_back(edge.to);
                }
            }
        }
        distance
    }

    /// Sends up to `most` from `node` on along shortest paths; edges that lead nowhere are not tried
    /// again before distances change.
    fn push(
        &mut self,
        node: usize,
        to: usize,
        most: u64,
        distance: &[usize],
        next: &mut [usize],
    ) -> u64 {
        if node == to {
            return most;
        }
        let mut sent = 0;
        while next[node] < self.leaving[node].len() {
            let i = self.leaving[node][next[node]];
            let Edge { to: there, left } = self.edges[i];
            if left > 0 && distance[there] == distance[node] + 1 {
                let pushed = self.push(there, to, left.min(most - sent), distance, next);
                self.edges[i].left -= pushed;
                self.edges[i ^ 1].left += pushed;
                sent += pushed;
                if sent == most {
                    return sent;
                }
            }
            next[node] += 1;
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_largest_flow() {
        let cases: [(&str, &[(usize, usize, u64)], u64); 4] = [
            ("one edge", &[(0, 5, 7)], 7),
            ("no way", &[(0, 2, 7)], 0),
            ("a narrow place", &[(0, 1, 9), (1, 2, 3), (2, 5, 9), (0, 2, 1)], 4),
            (
                "taking back pays",
                &[(0, 1, 1), (0, 2, 1), (1, 3, 1), (1, 4, 1), (2, 3, 1), (3, 5, 1), (4, 5, 1)],
                2,
            ),
        ];
        for (name, edges, want) in cases {
            let mut network = Network::default();
            let nodes = [(); 6].map(|()| network.node());
            for (from, to, capacity) in edges {
                network.edge(nodes[*from], nodes[*to], *capacity);
            }
            assert_eq!(network.largest_flow(0, 5), want, "{name}");
        }
    }
}

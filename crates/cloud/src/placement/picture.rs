//! The picture of all nodes that decisions are made on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nephos_ops::placement::PlacementReasons;
use nephos_types::{Error, Name, NodeId};

use super::{Amounts, Candidate, Decision, Demand, Nodes, Policy, choose, explain};

/// The picture of all nodes that decisions are made on.
#[derive(Default)]
pub struct Candidates {
    picture: Mutex<Picture>,
}

#[derive(Default)]
struct Picture {
    /// As of which change of the nodes; 0 before the first look.
    version: u64,
    nodes: Nodes,
    policy: Policy,
}

/// How the picture is drawn: changes with each change of what it shows, and what it shows.
pub struct Look<F> {
    /// Another number means that the picture is to be drawn anew.
    pub version: u64,
    /// Draws it.
    pub draw: F,
}

/// Where a server goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// What it may give in sum.
    pub capacity: Amounts,
    /// Why it.
    pub reasons: PlacementReasons,
}

impl Place {
    /// In a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        explain::summary(self.name.as_str(), &self.reasons)
    }
}

impl Picture {
    fn draw(&mut self, look: &Look<impl Fn() -> (Vec<Candidate>, Policy)>) {
        let (candidates, policy) = (look.draw)();
        self.nodes = Nodes::new(candidates);
        self.policy = policy;
        self.version = look.version;
    }

    /// Chooses. Notes of claims that the store then refused make the picture too dark, so nobody is refused before a
    /// fresh look.
    fn choose(
        &mut self,
        look: &Look<impl Fn() -> (Vec<Candidate>, Policy)>,
        demand: &Demand,
    ) -> Result<Decision, Error> {
        let fresh = self.version != look.version;
        if fresh {
            self.draw(look);
        }
        match choose(&self.nodes, &self.policy, demand) {
            Err(_) if !fresh => {
                self.draw(look);
                choose(&self.nodes, &self.policy, demand)
            }
            decided => decided,
        }
    }
}

impl Candidates {
    fn lock(&self) -> MutexGuard<'_, Picture> {
        self.picture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides, and notes the demand on the chosen node at once so that the next decision sees it.
    ///
    /// # Errors
    /// If no node can take it; see [`choose`].
    pub fn place(&self, look: &Look<impl Fn() -> (Vec<Candidate>, Policy)>, demand: &Demand) -> Result<Place, Error> {
        let mut picture = self.lock();
        let Decision { index, reasons } = picture.choose(look, demand)?;
        let candidate =
            picture.nodes.candidates.get_mut(index).ok_or_else(|| Error::bug("a node that is none was chosen"))?;
        candidate.used = candidate.used.plus(demand.amounts);
        Ok(Place { node: candidate.node, name: candidate.name.clone(), capacity: candidate.capacity, reasons })
    }

    /// Whether there is a node for the demand now; claims nothing.
    ///
    /// # Errors
    /// If no node can take it; see [`choose`].
    pub fn check(&self, look: &Look<impl Fn() -> (Vec<Candidate>, Policy)>, demand: &Demand) -> Result<(), Error> {
        self.lock().choose(look, demand).map(|_| ())
    }

    /// What was claimed on a node is free again, or was never claimed because the store refused.
    pub fn give_back(&self, node: NodeId, amounts: Amounts) {
        self.correct(node, |candidate| candidate.used = candidate.used.minus(amounts));
    }

    /// More was claimed on a node.
    pub fn take(&self, node: NodeId, amounts: Amounts) {
        self.correct(node, |candidate| candidate.used = candidate.used.plus(amounts));
    }

    fn correct(&self, node: NodeId, change: impl FnOnce(&mut Candidate)) {
        if let Some(candidate) = self.lock().nodes.find_mut(node) {
            change(candidate);
        }
    }
}

//! From a proof to what is told, first and later.
//!
//! Owns what is remembered of a flow once it has been told about, which of them are looked at again, and who is told when
//! a proof comes that is stronger than the last.

use std::time::Duration;

use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::FlowKey;

use super::answers::Asker;
use super::dns;
use super::in_progress::InProgress;
use super::knowledge::{Proof, Proven, Scene};
use super::looks::{self, Glimpse, Looks};
use super::signature::Whose;
use super::told::{Told, Watch, watched_as};
use super::verdict::{Concluded, Observation, Strength, Verdict};
use super::waiting::Clue;
use super::{Classifier, packet};
use crate::dataplane::Sample;

/// The clock of samples may be ahead of the one that the seconds are counted by.
const MAX_SKEW: Duration = Duration::from_mins(1);

impl Classifier {
    /// The flow's first verdict, or that there is none. With `goes_on`, more packets of it will come.
    pub(super) fn name(
        &mut self,
        scene: Scene<'_>,
        proof: Proof,
        start: Option<u32>,
        goes_on: bool,
    ) -> Observation {
        let signature = if let Proof::Protocol(signature) = &proof { Some(*signature) } else { None };
        let carries_anything = signature.is_some_and(|signature| signature.whose == Whose::Anybody);
        let proved_little = proof == Proof::Nothing || carries_anything;
        let proven = self.knowledge.judge(proof, scene);
        let (class, strength) = proven
            .as_ref()
            .map_or((Class::Other, Strength::None), |proven| (proven.verdict.class, proven.strength));
        let mut told = Told::new(scene, class, strength, start);
        told.app = proven.as_ref().and_then(|proven| proven.verdict.app.clone());
        told.signature = signature;
        let shared_by_datagrams = strength == Strength::SharedProtocol && scene.flow.protocol == packet::UDP;
        if goes_on && (proved_little || shared_by_datagrams) {
            told.stays_open();
        }
        if let Some(Proven { verdict, .. }) = &proven
            && goes_on
        {
            self.watch(scene, &mut told, verdict);
        }
        self.await_clues(scene, &told);
        let keeps_sampling = told.wants_more();
        self.tell(*scene.flow, told);
        self.tell_port(scene, strength);
        match proven {
            Some(proven) => Observation::Named(Verdict { keeps_sampling, ..proven.verdict }),
            None => Observation::GiveUp { keeps_sampling },
        }
    }

    /// A packet of a flow that was told about: what was said then, or what is said now.
    pub(super) fn learn(
        &mut self,
        sample: &Sample<'_>,
        again: Observation,
        glimpse: impl FnOnce() -> Glimpse,
        prove: impl FnOnce(&mut Self) -> Option<Proof>,
    ) -> Observation {
        if !matches!(again, Observation::Again { sampling: true, .. }) {
            return again;
        }
        let Some(told) = self.told.get_mut(&sample.flow) else { return again };
        if let Some(watch) = &mut told.watch {
            watch.looks.see(glimpse());
            let judged = told.judge_packets();
            self.watched -= usize::from(told.watch.is_none());
            if let Some(verdict) = judged {
                return Observation::Upgraded(verdict);
            }
        }
        if told.late > 0 {
            told.late -= 1;
            let proof = prove(self).unwrap_or(Proof::Nothing);
            if proof != Proof::Nothing
                && let Some(verdict) = self.upgrade(super::scene(sample), proof)
            {
                return Observation::Upgraded(verdict);
            }
        }
        self.told.get(&sample.flow).map_or(again, Told::again)
    }

    /// The flow's next verdict, if this proof is stronger than the last.
    fn upgrade(&mut self, scene: Scene<'_>, proof: Proof) -> Option<Verdict> {
        let known = self.told.get(scene.flow)?.strength;
        let signature = if let Proof::Protocol(signature) = &proof { Some(*signature) } else { None };
        let Proven { mut verdict, strength } = self.knowledge.judge(proof, scene)?;
        if strength <= known {
            return None;
        }
        let told = self.told.get_mut(scene.flow)?;
        told.strength = strength;
        told.signature = signature.or(told.signature);
        if strength > Strength::SharedProtocol {
            told.late = 0;
        }
        if told.by_packets {
            verdict.class = told.class;
        }
        told.class = verdict.class;
        told.app.clone_from(&verdict.app);
        verdict.keeps_sampling = told.wants_more();
        if let Some(watch) = &mut told.watch {
            watch.verdict = verdict.clone();
        }
        self.tell_port(scene, strength);
        Some(verdict)
    }

    /// DNS answers came that other flows may have waited for.
    pub(super) fn answered(&mut self, asker: Asker, message: &dns::Message, now: Micros) {
        for (address, _) in &message.addresses {
            for flow in self.waiting.take(&Clue::Address(asker, packet::octets(*address))) {
                self.reconsider(flow, now);
            }
        }
    }

    /// A flow showed whose its port is: others of the same port may have waited for that.
    fn tell_port(&mut self, scene: Scene<'_>, strength: Strength) {
        if strength != Strength::Protocol || scene.flow.protocol != packet::UDP {
            return;
        }
        for flow in self.waiting.take(&Clue::Port(scene.flow.subscriber, scene.flow.subscriber_port)) {
            if flow != *scene.flow {
                self.reconsider(flow, scene.now);
            }
        }
    }

    /// Something was learnt about a flow that was told about; it is told at the next second.
    fn reconsider(&mut self, flow: FlowKey, now: Micros) {
        let Some(told) = self.told.get(&flow) else { return };
        let (slot, first_packet) = (told.slot, told.first_packet);
        let proof = told.signature.map_or(Proof::Nothing, Proof::Protocol);
        let Some(verdict) = self.upgrade(Scene { flow: &flow, slot, first_packet, now }, proof) else {
            return;
        };
        if self.due.len() >= self.limits.waiting {
            self.counters.upgrades_untold += 1;
            return;
        }
        self.due.push(Concluded { flow, slot, first_packet, observation: Observation::Upgraded(verdict) });
    }

    /// What a flow whose first bytes are not enough is told to be; `None` where it has been told about.
    pub(super) fn conclude_stream(&mut self, flow: FlowKey, stream: &InProgress) -> Option<Concluded> {
        if self.told.get(&flow).is_some() {
            return None;
        }
        let InProgress { slot, first_packet, since, .. } = *stream;
        let scene = Scene { flow: &flow, slot, first_packet, now: since };
        let proof = stream.fallback().map_or(Proof::Nothing, Proof::Protocol);
        let observation = self.name(scene, proof, stream.start(), false);
        Some(Concluded { flow, slot, first_packet, observation })
    }

    /// Begins the looks whose time has come.
    pub(super) fn begin_looks(&mut self, now: Micros, concluded: &mut Vec<Concluded>) {
        for (number, wait) in looks::AFTER.into_iter().enumerate() {
            // What is due much later than any look from now on would be was put in before time went back.
            let latest = now.after(wait + MAX_SKEW);
            let is_due = |(due, _): &mut (Micros, FlowKey)| *due <= now || *due > latest;
            while let Some((_, flow)) = self.looks[number].pop_front_if(is_due) {
                let Some(told) = self.told.get_mut(&flow) else { continue };
                let Some(watch) = &mut told.watch else { continue };
                if !watch.looks.begin(now) {
                    told.watch = None;
                    self.watched -= 1;
                    continue;
                }
                if let Some(after) = watch.looks.next()
                    && let Some(queue) = self.looks.get_mut(number + 1)
                {
                    queue.push_back((now.after(after), flow));
                }
                let Told { slot, first_packet, .. } = *told;
                concluded.push(Concluded { flow, slot, first_packet, observation: told.again() });
            }
        }
    }

    /// The flow is looked at again, if its packets may show another class.
    fn watch(&mut self, scene: Scene<'_>, told: &mut Told, verdict: &Verdict) {
        let Some(kind) = watched_as(verdict, told.signature) else { return };
        // The queue too: what was watched and is forgotten stands in it for a second more.
        if self.watched.max(self.looks[0].len()) >= self.limits.watched {
            self.counters.unwatched += 1;
            return;
        }
        self.watched += 1;
        told.watch = Some(Box::new(Watch { looks: Looks::new(kind), verdict: verdict.clone() }));
        self.looks[0].push_back((scene.now.after(looks::AFTER[0]), *scene.flow));
    }

    /// A weak proof waits for a stronger.
    fn await_clues(&mut self, scene: Scene<'_>, told: &Told) {
        let flow = scene.flow;
        if told.strength < Strength::Dns || told.strength == Strength::SharedProtocol {
            let asker = Asker::of(scene.slot, flow);
            self.waiting.put(Clue::Address(asker, flow.remote), *flow);
        }
        if told.strength == Strength::SharedProtocol && flow.protocol == packet::UDP {
            self.waiting.put(Clue::Port(flow.subscriber, flow.subscriber_port), *flow);
        }
    }

    pub(super) fn tell(&mut self, flow: FlowKey, told: Told) {
        self.forget_told(&flow);
        if let Some((_, forgotten)) = self.told.insert(flow, told) {
            self.counters.verdicts_forgotten += 1;
            self.watched -= usize::from(forgotten.watch.is_some());
        }
    }

    pub(super) fn forget_told(&mut self, flow: &FlowKey) {
        if let Some(told) = self.told.remove(flow) {
            self.watched -= usize::from(told.watch.is_some());
        }
    }
}

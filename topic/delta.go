package topic

import (
	"weak"

	fdelta "github.com/shadowspore/fossil-delta"
)

// deltaMost is up to how many bytes of payload a delta is made, which happens on
// a loop: of 32 KiB it takes some 1.5 ms, 10 where the payload is made for it.
const deltaMost = 32 << 10

// patched is a patch and what it is a patch of, which it does not hold: a history
// would never end.
type patched struct {
	base weak.Pointer[Publication]
	data []byte
}

// Patch is the delta (DeltaFossil) that makes this publication's payload of
// another's, as the function Patch says. It is made once for the publication
// before, whoever asks, and shared: nobody changes it. Safe from any goroutine.
func (p *Publication) Patch(base *Publication) []byte {
	of := weak.Make(base)
	if made := p.patch.Load(); made != nil && made.base == of {
		return made.data
	}
	made := &patched{of, Patch(base.Data, p.Data)}
	p.patch.Store(made)
	return made.data
}

// patchLocked is what makes this publication's payload of the one before; nil
// where it is not shorter than the payload itself.
func (d *delivery) patchLocked() []byte {
	if !d.Delta || d.base == nil {
		return nil
	}
	return d.Publication.Patch(d.base)
}

// Patch is the delta (DeltaFossil) that turns one payload into another, or nil
// where it is not shorter or one of them is over 32 KiB. Safe from any goroutine.
func Patch(from, to []byte) []byte {
	if len(from) > deltaMost || len(to) > deltaMost {
		return nil
	}
	if p := fdelta.Create(from, to); len(p) < len(to) {
		return p
	}
	return nil
}

// dropDelta notes that a subscriber with deltas has gone: with the last one goes
// what is kept for them.
func (t *Topics) dropDelta(tp *Topic) {
	sh := t.shard(tp.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if tp.rare.deltas--; tp.rare.deltas == 0 {
		tp.rare.last = nil
	}
}

// lastIs has the topic make its next delta of p, where it knows no publication
// before: a subscriber of its has just been given that one.
func (t *Topics) lastIs(name string, p *Publication) {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if tp := sh.topics[name]; tp != nil && tp.deltaLocked() && tp.rare.last == nil && len(p.Data) <= deltaMost {
		tp.rare.last = p
	}
}

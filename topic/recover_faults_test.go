package topic

import (
	"fmt"
	"testing"
	"time"
)

// copied is a publication that says the same.
func (p *Publication) copied() *Publication {
	return &Publication{Data: p.Data, Tags: p.Tags, Info: p.Info, Offset: p.Offset, Previous: p.Previous}
}

// lie changes what a history answers so that it looks whole.
func lie(all []*Publication, change func([]*Publication) []*Publication) []*Publication {
	if len(all) < 2 {
		return all
	}
	copies := make([]*Publication, len(all))
	for i, p := range all {
		copies[i] = p.copied()
	}
	return change(copies)
}

// TestRecoverModelFindsFaults injects faults into what is merged: each of them
// must be found, whether what protects topic sees it or not.
func TestRecoverModelFindsFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(all []*Publication, at Position) ([]*Publication, Position)
	}{
		{"the first missed is dropped", func(all []*Publication, at Position) ([]*Publication, Position) {
			return all[min(1, len(all)):], at
		}},
		{"the first missed is dropped, and it does not show", func(all []*Publication, at Position) ([]*Publication, Position) {
			return lie(all, func(all []*Publication) []*Publication {
				all[1].Previous = all[0].Previous
				return all[1:]
			}), at
		}},
		{"the last is dropped, and it does not show", func(all []*Publication, at Position) ([]*Publication, Position) {
			if n := len(all); n > 0 {
				at.Offset = all[n-1].Previous
				return all[:n-1], at
			}
			return all, at
		}},
		{"the last is repeated", func(all []*Publication, at Position) ([]*Publication, Position) {
			if n := len(all); n > 0 {
				all = append(all, all[n-1])
			}
			return all, at
		}},
		{"the last is repeated, and it does not show", func(all []*Publication, at Position) ([]*Publication, Position) {
			if n := len(all); n > 0 {
				again := all[n-1].copied()
				again.Previous, again.Offset = again.Offset, again.Offset+1
				all, at.Offset = append(all, again), again.Offset
			}
			return all, at
		}},
		{"the top is too high", func(all []*Publication, at Position) ([]*Publication, Position) {
			at.Offset++
			return all, at
		}},
		{"the top is too low", func(all []*Publication, at Position) ([]*Publication, Position) {
			at.Offset -= min(at.Offset, 1)
			return all, at
		}},
		{"two are swapped", func(all []*Publication, at Position) ([]*Publication, Position) {
			if len(all) > 1 {
				all[0], all[1] = all[1], all[0]
			}
			return all, at
		}},
		{"two are swapped, and it does not show", func(all []*Publication, at Position) ([]*Publication, Position) {
			return lie(all, func(all []*Publication) []*Publication {
				all[0].Data, all[1].Data = all[1].Data, all[0].Data
				return all
			}), at
		}},
		{"another epoch", func(all []*Publication, at Position) ([]*Publication, Position) {
			at.Epoch += "x"
			return all, at
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if found := findFault(t, func(m *recoverModel) { m.broker.spoil = tt.spoil }); found == "" {
				t.Error("the model does not find it")
			} else {
				t.Log(found)
			}
		})
	}
}

// faultyReceiver stands between a broker and topic.
type faultyReceiver struct {
	Receiver
	deliver func(r Receiver, name string, d Delivery) error
}

func (r *faultyReceiver) Deliver(name string, d Delivery) error {
	return r.deliver(r.Receiver, name, d)
}

// TestRecoverModelFindsFaultsOfDelivery does the same to what is delivered live.
func TestRecoverModelFindsFaultsOfDelivery(t *testing.T) {
	n := 0
	var kept *Delivery
	for _, tt := range []struct {
		name    string
		deliver func(r Receiver, name string, d Delivery) error
	}{
		{"some are dropped", func(r Receiver, name string, d Delivery) error {
			if n++; n%50 == 0 {
				return nil
			}
			return r.Deliver(name, d)
		}},
		{"some are dropped, and it does not show", func(r Receiver, name string, d Delivery) error {
			if n++; n%50 == 0 && d.Publication.Offset > 0 {
				kept = &d
				return nil
			}
			if kept != nil && d.Epoch == kept.Epoch {
				d.Publication = d.Publication.copied()
				d.Publication.Previous = kept.Publication.Previous
				kept = nil
			}
			return r.Deliver(name, d)
		}},
		{"some come in the wrong order", func(r Receiver, name string, d Delivery) error {
			if n++; kept == nil && n%50 == 0 && d.Publication.Offset > 0 {
				kept = &d
				return nil
			}
			err := r.Deliver(name, d)
			if kept != nil && d.Epoch == kept.Epoch && err == nil {
				late := *kept
				kept = nil
				return r.Deliver(name, late)
			}
			return err
		}},
		{"an offset is said wrong", func(r Receiver, name string, d Delivery) error {
			if n++; n%50 == 0 && d.Publication.Offset > 0 {
				d.Publication = d.Publication.copied()
				d.Publication.Offset++
			}
			return r.Deliver(name, d)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, kept = 0, nil
			found := findFault(t, func(m *recoverModel) {
				m.broker.Memory.receiver = &faultyReceiver{m.topics, tt.deliver}
			})
			if found == "" {
				t.Error("the model does not find it")
			} else {
				t.Log(found)
			}
		})
	}
}

// findFault runs the model with a fault and returns what it found.
func findFault(t *testing.T, inject func(*recoverModel)) (found string) {
	type fault string
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(fault)
			if !ok {
				panic(r)
			}
			found = string(f)
		}
	}()
	m := newRecoverModel(t, 1, recoverConfigs[2])
	m.fail = func(format string, args ...any) { panic(fault(fmt.Sprintf(format, args...))) }
	inject(m)
	m.run(20_000, time.Second)
	return ""
}

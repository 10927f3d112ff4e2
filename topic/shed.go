package topic

import "math"

const (
	// shedSlice is how many steps one hold of a shard's lock takes to make room.
	shedSlice = 64
	// shedVain is how many positions that have to stay, as their topics have
	// subscribers, one call looks at.
	shedVain = 8
)

// shed makes room where all streams together have become too much. Positions
// that nobody needs just now go first: there may be any number of them, and they
// would outlive what has been published. Of publications, what would end next
// goes first, whatever its topic.
func (m *Memory) shed(now int64) {
	for vain := 0; m.over(); {
		if vain < shedVain {
			if sh, until := m.firstDue(queueBare); sh != nil {
				vain += m.shedBare(sh, until, now)
				continue
			}
		}
		sh, until := m.firstDue(queueKept)
		if sh == nil {
			return
		}
		m.shedKept(sh, until)
	}
}

func (m *Memory) over() bool { return m.bytes.Load() > m.o.HistoryBytes }

// firstDue is the shard whose queue's head is due before the others', and when
// that of the next one is; nil where no shard has anything.
func (m *Memory) firstDue(queue int) (first *memoryShard, next int64) {
	due := int64(math.MaxInt64)
	next = due
	for i := range m.heads[queue] {
		switch head := m.heads[queue][i].Load(); {
		case head < due:
			first, due, next = &m.shards[i], head, due
		case head < next:
			next = head
		}
	}
	return first, next
}

// shedBare forgets topics that are due until then, and says how many had to stay.
func (m *Memory) shedBare(sh *memoryShard, until, now int64) (vain int) {
	sh.mu.Lock()
	defer sh.unlock()
	for range shedSlice {
		q := sh.queues[queueBare]
		if len(q) == 0 || q[0].due > until || !m.over() {
			break
		}
		switch s := q[0]; {
		case s.due < s.forget: // it has been used since
			s.due = s.forget
			sh.queueLocked(s)
		case m.stayLocked(s, now):
			s.due = max(s.forget, s.due+1)
			sh.queueLocked(s)
			vain++
		default:
			m.removeLocked(sh, s)
		}
	}
	return vain
}

// shedKept drops publications that are due until then, one after the other, up to
// a stream's last: its position is the next that can go.
func (m *Memory) shedKept(sh *memoryShard, until int64) {
	sh.mu.Lock()
	defer sh.unlock()
	for range shedSlice {
		q := sh.queues[queueKept]
		if len(q) == 0 || q[0].due > until || !m.over() {
			break
		}
		s := q[0]
		if next := s.next(); s.due < next { // what it was due for has been replaced
			s.due = next
			sh.queueLocked(s)
			continue
		}
		m.changeLocked(sh, s, func() {
			s.trim(math.MinInt64, s.len()-1, math.MaxInt)
			s.due = s.next()
		})
		if s.len() == 0 {
			break
		}
	}
}

// shedResults forgets the answers that end first, of whatever shard, where all of
// them have become too much.
func (m *Memory) shedResults() {
	for m.results.Load() > int64(m.o.ResultBytes) {
		sh, until := m.firstDue(headResults)
		if sh == nil {
			return
		}
		sh.mu.Lock()
		for range shedSlice {
			if r := &sh.results; m.results.Load() <= int64(m.o.ResultBytes) || r.oldest() > until || r.first == len(r.order) {
				break
			}
			sh.results.drop()
		}
		sh.unlock()
	}
}

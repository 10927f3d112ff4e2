package cluster

import (
	"errors"
	"slices"
	"strings"
	"time"

	"perch/session"
)

const (
	// mostSurveys bounds those that are under way; an idle one is some 500 bytes.
	mostSurveys = 4096
	// mostHeld bounds the bytes of all answers that are not complete.
	mostHeld = 64 << 20
	// unansweredEvery is how often a log says that a node has not answered.
	unansweredEvery = 10 * time.Second
)

var (
	// ErrUnanswered stands in the place of an answer that did not come in time.
	ErrUnanswered = errors.New("cluster: node has not answered")
	// ErrBusy is returned where there is no room for a question, here or there.
	ErrBusy = errors.New("cluster: too many questions")
	// ErrTooLarge is returned for a question or an answer that nobody will carry.
	ErrTooLarge = errors.New("cluster: too large for other nodes")
	// ErrAnswer is that a node could not do what it was asked for; its log says more.
	ErrAnswer = errors.New("cluster: node failed to answer")
)

// The errors of an answer, as they go between nodes.
const (
	wireBusy   = "busy"
	wireLarge  = "large"
	wireFailed = "failed"
)

// Question is what other nodes are asked.
type Question struct {
	Node   session.Node // the only one that is asked; 0: all
	Method string
	Params []byte // not changed any more
	// Shared: whoever asks the same while it is under way gets the same answers.
	Shared  bool
	Timeout time.Duration // 0: as NodesOptions says
}

// Answer is what one node said. Its Data is shared where the question is.
type Answer struct {
	Node session.Node
	Name string
	Data []byte
	Err  error // ErrUnanswered, ErrBusy, ErrTooLarge, ErrAnswer
}

// survey is a question that is under way; it is under the lock of Nodes.
type survey struct {
	id      uint64
	key     string // among the shared ones; empty: it is none
	left    map[session.Node]*part
	answers []Answer
	held    int
	done    []func([]Answer, error)
	timer   *time.Timer
	method  string
	over    bool
}

// part is an answer that is not complete.
type part struct {
	Answer
	parts int
}

// Ask asks other nodes and calls done once with the answers of all that are
// alive, by their names, on any goroutine or before Ask returns: those that have
// not answered in time are among them, with ErrUnanswered; one that goes meanwhile
// is not. done does not block. Its error says that nobody was asked: ErrBusy,
// ErrTooLarge, ErrUnavailable. It does not block.
func (n *Nodes) Ask(q Question, done func([]Answer, error)) {
	if !n.opts.Link.Connected() {
		done(nil, ErrUnavailable)
		return
	}
	if q.Timeout == 0 {
		q.Timeout = n.opts.Timeout
	}
	key := ""
	if q.Shared {
		key = q.Method + "\x00" + string(q.Params)
	}
	n.mu.Lock()
	if s := n.shared[key]; s != nil && key != "" {
		s.done = append(s.done, done)
		n.mu.Unlock()
		return
	}
	s := &survey{key: key, method: q.Method, left: make(map[session.Node]*part), done: []func([]Answer, error){done}}
	subject := n.base + kindAsk
	for node, p := range n.peers {
		if q.Node != 0 && !q.Node.Is(node) {
			continue
		}
		if q.Node != 0 {
			subject = n.base + nodeHex(node) + "." + kindAsk
		}
		s.left[node] = &part{Answer: Answer{Node: node, Name: p.Name}}
	}
	if len(s.left) == 0 {
		n.mu.Unlock()
		done(nil, nil)
		return
	}
	fail := func(err error) {
		n.mu.Unlock()
		n.busy.Add(1)
		done(nil, err)
	}
	if n.closed {
		fail(ErrUnavailable)
		return
	}
	if len(n.surveys) >= mostSurveys {
		fail(ErrBusy)
		return
	}
	n.last++
	s.id = n.last
	e := envelope{Node: n.self, ID: s.id, Method: q.Method, Millis: q.Timeout.Milliseconds()}
	b := e.encode(q.Params)
	if int64(len(b)) > n.nc.MaxPayload() {
		fail(ErrTooLarge)
		return
	}
	if !n.outbox.send(subject, b) {
		fail(ErrBusy)
		return
	}
	n.surveys[s.id] = s
	if key != "" {
		n.shared[key] = s
	}
	s.timer = time.AfterFunc(q.Timeout, func() { n.expire(s) })
	n.asked.Add(1)
	n.mu.Unlock()
}

// expire ends a survey whose time is over.
func (n *Nodes) expire(s *survey) {
	n.mu.Lock()
	var names []string
	if !s.over {
		for node, p := range s.left {
			names = append(names, p.Name)
			n.dropPartLocked(s, node)
			s.answers = append(s.answers, Answer{Node: node, Name: p.Name, Err: ErrUnanswered})
		}
	}
	over := n.overLocked(s)
	n.mu.Unlock()
	n.unanswered.Add(uint64(len(names)))
	if len(names) > 0 {
		if quiet, ok := n.silent.Pass(unansweredEvery); ok {
			slices.Sort(names)
			n.log.Warn("nodes have not answered in time", "nodes", strings.Join(names, " "), "method", s.method, "quiet", quiet)
		}
	}
	over()
}

// failSurveys ends all that is under way: the connection is gone.
func (n *Nodes) failSurveys() {
	n.mu.Lock()
	all := make([]*survey, 0, len(n.surveys))
	for _, s := range n.surveys {
		all = append(all, s)
	}
	n.mu.Unlock()
	for _, s := range all {
		n.expire(s)
	}
}

// take puts a part of an answer to the others.
func (n *Nodes) take(e *envelope, body []byte) {
	n.mu.Lock()
	s := n.surveys[e.ID]
	if s == nil || s.left[e.from] == nil {
		n.mu.Unlock()
		return // late, or of a node that is taken for gone
	}
	p := s.left[e.from]
	switch {
	case e.Err != "":
		p.Err = wireError(e.Err)
	case e.Part != p.parts: // one has been lost
		p.Err = ErrUnanswered
	case len(p.Data)+len(body) > maxAnswer || n.held+len(body) > mostHeld:
		p.Err = ErrTooLarge
	default:
		n.held += len(body)
		s.held += len(body)
		if p.Data == nil {
			p.Data = body
		} else {
			p.Data = append(p.Data, body...)
		}
		p.parts++
		if e.More {
			n.mu.Unlock()
			return
		}
	}
	a := p.Answer
	if a.Err != nil {
		n.dropPartLocked(s, e.from)
		a.Data = nil
	} else {
		delete(s.left, e.from)
	}
	s.answers = append(s.answers, a)
	over := n.overLocked(s)
	n.mu.Unlock()
	over()
}

// dropPartLocked forgets what a node has said so far.
func (n *Nodes) dropPartLocked(s *survey, node session.Node) {
	size := len(s.left[node].Data)
	n.held -= size
	s.held -= size
	delete(s.left, node)
}

// overLocked ends a survey for which no answer is missing, and returns what is to
// be called without the lock.
func (n *Nodes) overLocked(s *survey) func() {
	if len(s.left) > 0 || s.over {
		return func() {}
	}
	s.over = true
	s.timer.Stop()
	delete(n.surveys, s.id)
	if s.key != "" {
		delete(n.shared, s.key)
	}
	n.held -= s.held
	slices.SortFunc(s.answers, func(a, b Answer) int { return byName(a.Name, a.Node, b.Name, b.Node) })
	return func() {
		for _, done := range s.done {
			done(s.answers, nil)
		}
	}
}

func wireError(text string) error {
	switch text {
	case wireBusy:
		return ErrBusy
	case wireLarge:
		return ErrTooLarge
	}
	return ErrAnswer
}

func errorWire(err error) string {
	switch {
	case errors.Is(err, ErrBusy):
		return wireBusy
	case errors.Is(err, ErrTooLarge):
		return wireLarge
	}
	return wireFailed
}

package bench

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The scenarios.
const (
	Idle      = "idle"      // sessions that are held: memory and CPU
	Connect   = "connect"   // sessions that are opened: at once, or at a rate
	Echo      = "echo"      // messages that come back
	Fanout    = "fanout"    // publications to all subscribers of one topic
	Push      = "push"      // publications to single users, by the server API
	Churn     = "churn"     // sessions that come and go at a rate, beside others
	Reconnect = "reconnect" // all sessions lost at once, and back with backoff
	Mixed     = "mixed"     // all of it, beside idle sessions
	Beset     = "hostile"   // good sessions without hostile peers and beside them
)

// Scenarios are all of them, in the order of the documents.
func Scenarios() []string {
	return []string{Idle, Connect, Echo, Fanout, Push, Churn, Reconnect, Mixed, Beset}
}

// The protocols that a load can speak.
const (
	// ProtocolEcho is a plain endpoint that echoes messages.
	ProtocolEcho = "echo"
	// ProtocolCentrifuge is the Centrifuge client protocol in JSON: a session
	// connects with a token and subscribes.
	ProtocolCentrifuge = "centrifuge"
	// ProtocolFirst sends a first frame of the user's, and takes the first message
	// that comes back for the answer.
	ProtocolFirst = "first"
)

// Options say what to load, and how. The zero value of each field but Scenario
// and URL is its default.
type Options struct {
	Scenario string `json:"scenario"`
	// URL is where the sockets go, as ws://host:port/path.
	URL string `json:"url"`
	// Name is what the server is called in the report; empty: URL.
	Name string `json:"name,omitempty"`
	// Protocol is what is spoken there; empty: centrifuge where the path is
	// /connection/websocket, first where First is given, else echo.
	Protocol string `json:"protocol,omitempty"`
	// Header are lines to add to the request.
	Header []string `json:"header,omitempty"`
	// First is the text of the first frame of ProtocolFirst; {i} is the number of
	// the connection.
	First string `json:"first,omitempty"`
	// Secret signs a token for each session (HS256); Token is one for all; neither:
	// sessions connect without.
	Secret string `json:"secret,omitempty"`
	Token  string `json:"token,omitempty"`
	// Topic is what sessions subscribe; {i} is the number of the connection. Empty:
	// "bench", or one for each where the scenario needs that; "-": none.
	Topic string `json:"topic,omitempty"`

	// Connections is how many are held; 0: 1,000.
	Connections int `json:"connections,omitempty"`
	// Steps, of idle, are counts of connections at which memory is read, in
	// order; empty: five even steps up to Connections.
	Steps []int `json:"steps,omitempty"`
	// Rate is that of an open loop, per second: connects, messages, publications or
	// changes. 0: a closed loop for echo, a storm for connect, else a default.
	Rate float64 `json:"rate,omitempty"`
	// Window is how many connects are under way at once in a storm; 0: 64.
	Window int `json:"window,omitempty"`
	// Depth is how many messages of echo a connection sends at once; 0: 1.
	Depth int `json:"depth,omitempty"`
	// Burst is how many publications of fanout leave at once; 0: 1.
	Burst int `json:"burst,omitempty"`
	// Size is that of a message, in bytes; 0: 128.
	Size int `json:"size,omitempty"`
	// Duration is that of the measured part; 0: 10 s. Warmup goes before it and is
	// not counted; 0: 2 s; below 0: none. Settle is from the last connect to a
	// reading of the memory; 0: 3 s.
	Duration time.Duration `json:"duration,omitempty"`
	Warmup   time.Duration `json:"warmup,omitempty"`
	Settle   time.Duration `json:"settle,omitempty"`
	// Hostile, of the scenario of that name, is how many peers there are of each of
	// HostileKinds, or of "all"; what is not said is 100. Flood is how many frames or
	// commands a flood's burst has, of which each flooder sends one a second; 0: 512.
	// Rounds is how many turns there are without them and beside them, which share
	// Duration; 0: 5.
	Hostile map[string]int `json:"hostile,omitempty"`
	Flood   int            `json:"flood,omitempty"`
	Rounds  int            `json:"rounds,omitempty"`
	// Sources is how many addresses of 127.0.0.0/8 the connections come from, from
	// 127.0.0.2 or the address number FirstSource on. 0: as many as the number of
	// connections wants where the server is on loopback, else the kernel's choice.
	Sources     int `json:"sources,omitempty"`
	FirstSource int `json:"first_source,omitempty"`
	// Processes share the load; 0: 1.
	Processes int `json:"processes,omitempty"`

	// PID is the server's process and Admin the URL of its admin port: what it uses
	// is read there. Neither is needed. APIKey is for the server API, which push
	// needs.
	PID    int    `json:"pid,omitempty"`
	Admin  string `json:"admin,omitempty"`
	APIKey string `json:"api_key,omitempty"`
}

// perSource is how many connections one source address makes to one port: the
// ports of ip_local_port_range, with room for TIME_WAIT.
const perSource = 20000

// rateMost is where the moments of events fall together: the clock counts
// nanoseconds.
const rateMost = 1e9

const defaultTopic = "bench"

// ownTopics are the scenarios in which each session has a topic of its own.
var ownTopics = []string{Push, Mixed, Beset}

// withDefaults fills in what is not said, and says what can't be.
func (o Options) withDefaults() (Options, error) {
	if !slices.Contains(Scenarios(), o.Scenario) {
		return o, fmt.Errorf("bench: unknown scenario %q; there are %s", o.Scenario, strings.Join(Scenarios(), ", "))
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil:
		return o, fmt.Errorf("bench: url: %w", err)
	case u.Scheme == "wss":
		return o, errors.New("bench: url: wss:// is not spoken; measure behind the TLS endpoint, with ws://")
	case u.Scheme != "ws" || u.Host == "":
		return o, fmt.Errorf("bench: url: %q is not ws://host:port/path", o.URL)
	}
	if o.Protocol == "" {
		switch {
		case o.First != "":
			o.Protocol = ProtocolFirst
		case strings.HasPrefix(u.Path, "/connection/websocket"):
			o.Protocol = ProtocolCentrifuge
		default:
			o.Protocol = ProtocolEcho
		}
	}
	switch o.Protocol {
	case ProtocolEcho, ProtocolCentrifuge, ProtocolFirst:
	default:
		return o, fmt.Errorf("bench: unknown protocol %q; there are echo, centrifuge and first", o.Protocol)
	}
	for _, f := range []struct {
		name  string
		value float64
	}{
		{"connections", float64(o.Connections)}, {"rate", o.Rate}, {"window", float64(o.Window)},
		{"depth", float64(o.Depth)}, {"burst", float64(o.Burst)}, {"size", float64(o.Size)},
		{"duration", float64(o.Duration)}, {"sources", float64(o.Sources)}, {"first source", float64(o.FirstSource)},
		{"processes", float64(o.Processes)}, {"flood", float64(o.Flood)}, {"rounds", float64(o.Rounds)},
	} {
		if f.value < 0 {
			return o, fmt.Errorf("bench: %s: must not be below 0", f.name)
		}
	}
	if math.IsNaN(o.Rate) || o.Rate > rateMost {
		return o, fmt.Errorf("bench: rate: must be a number up to %.0f", rateMost)
	}
	def(&o.Connections, 1000)
	def(&o.Window, 64)
	def(&o.Depth, 1)
	def(&o.Burst, 1)
	def(&o.Size, 128)
	def(&o.Duration, 10*time.Second)
	def(&o.Warmup, 2*time.Second)
	o.Warmup = max(o.Warmup, 0)
	def(&o.Settle, 3*time.Second)
	def(&o.Processes, 1)
	if o.Name == "" {
		o.Name = o.URL
	}
	if o.Topic == "" {
		o.Topic = defaultTopic
		if slices.Contains(ownTopics, o.Scenario) {
			o.Topic += "{i}"
		}
	}
	if o, err = o.scenarioDefaults(); err != nil {
		return o, err
	}
	if o.Processes > o.Connections {
		return o, fmt.Errorf("bench: %d processes can't share %d connections", o.Processes, o.Connections)
	}
	return o, nil
}

// def sets what is not said.
func def[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func (o Options) scenarioDefaults() (Options, error) {
	switch o.Scenario {
	case Idle:
		if len(o.Steps) == 0 {
			for k := 1; k <= 5; k++ {
				o.Steps = append(o.Steps, max(1, o.Connections*k/5))
			}
		}
		if !slices.IsSorted(o.Steps) || o.Steps[0] < 1 {
			return o, errors.New("bench: steps: must grow, from 1 on")
		}
		o.Connections = o.Steps[len(o.Steps)-1]
	case Echo:
		if o.Protocol != ProtocolEcho {
			return o, fmt.Errorf("bench: echo wants an endpoint that echoes, such as ws://host:port/echo, not the protocol %s", o.Protocol)
		}
	case Fanout:
		def(&o.Rate, 2)
		if o.Protocol == ProtocolFirst {
			return o, errors.New("bench: fanout does not know how to publish with a first frame; it speaks echo (a message goes to all) and centrifuge")
		}
		if o.Protocol == ProtocolCentrifuge && strings.Contains(o.Topic, "{i}") {
			return o, errors.New("bench: fanout wants one topic for all")
		}
	case Push:
		def(&o.Rate, 200)
		if o.Protocol != ProtocolCentrifuge || o.Admin == "" || o.APIKey == "" {
			return o, errors.New("bench: push publishes by the server API: give --admin and --api-key, and a URL with /connection/websocket")
		}
	case Churn:
		def(&o.Rate, 100)
	case Beset:
		return o, o.hostileDefaults()
	case Mixed:
		def(&o.Rate, 500)
		if o.Protocol != ProtocolCentrifuge {
			return o, errors.New("bench: mixed speaks centrifuge only: give a URL with /connection/websocket")
		}
	}
	return o, nil
}

// mode tells which mode the load has.
func (o Options) mode() string {
	if o.Rate > 0 {
		return OpenLoop
	}
	return ClosedLoop
}

// share is what process k of o.Processes does of it.
func (o Options) share(k int) Options {
	part := func(n int) int { return n*(k+1)/o.Processes - n*k/o.Processes }
	s := o
	s.Connections = part(o.Connections)
	s.Window = max(1, part(o.Window))
	s.Steps = slices.Clone(o.Steps)
	for i, n := range s.Steps {
		s.Steps[i] = part(n)
	}
	if o.Scenario != Fanout { // one process publishes
		s.Rate = o.Rate / float64(o.Processes)
	}
	// Rounded up, so that none has more connections than its addresses have ports.
	s.Sources = (o.Sources + o.Processes - 1) / o.Processes
	s.FirstSource = o.FirstSource + k*s.Sources
	return s
}

// target resolves where the connections go.
func (o *Options) target() (target, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return target{}, fmt.Errorf("bench: url: %w", err)
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "80"
	}
	a, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return target{}, fmt.Errorf("bench: url: %w", err)
	}
	addr := a.AddrPort()
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	loopback := addr.Addr().Is4() && addr.Addr().IsLoopback()
	if o.Sources > 0 && !loopback {
		return target{}, errors.New("bench: sources: only towards an address of 127.0.0.0/8")
	}
	if o.Sources == 0 && loopback {
		o.Sources = o.Connections/perSource + 1
	}
	def(&o.FirstSource, 2)
	return target{addr: addr, head: requestHead(u.Host, u.RequestURI(), o.Header), sources: o.Sources, first: o.FirstSource}, nil
}

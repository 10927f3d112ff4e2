package netpoll

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws/wsflate"
)

const (
	answerPlain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	malformed   = "400"
)

// offerCases are values of Sec-WebSocket-Extensions with the answer's, which is
// empty where no extension is taken.
var offerCases = []struct {
	section string // of RFC 7692, with R of RFC 6455
	offer   string
	answer  string
	decline int
}{
	{"7", "permessage-deflate", answerPlain, 0},
	{"7.1.1.1", "permessage-deflate; server_no_context_takeover", answerPlain, 0},
	{"7.1.1.2", "permessage-deflate; client_no_context_takeover", answerPlain, 0},
	{"7.1.1", "permessage-deflate; client_no_context_takeover; server_no_context_takeover", answerPlain, 0},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits", answerPlain, 0},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits=8", answerPlain, 0},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits=15", answerPlain, 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=8", answerPlain + "; server_max_window_bits=8", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=9", answerPlain + "; server_max_window_bits=9", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=10", answerPlain + "; server_max_window_bits=10", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=11", answerPlain + "; server_max_window_bits=11", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=12", answerPlain + "; server_max_window_bits=12", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=13", answerPlain + "; server_max_window_bits=13", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=14", answerPlain + "; server_max_window_bits=14", 0},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=15", answerPlain + "; server_max_window_bits=15", 0},
	{"7.1", "permessage-deflate; server_max_window_bits=10; client_max_window_bits=9; server_no_context_takeover",
		answerPlain + "; server_max_window_bits=10", 0},

	// Values: sections 7.1.1 and 7.1.2.
	{"7.1.2.1", "permessage-deflate; server_max_window_bits", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=7", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=16", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=0", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=08", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=010", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=1", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=100", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=+9", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=-9", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=1a", "", 1},
	{"7.1.2.1", "permessage-deflate; server_max_window_bits=a", "", 1},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits=7", "", 1},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits=16", "", 1},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits=09", "", 1},
	{"7.1.2.2", "permessage-deflate; client_max_window_bits=x", "", 1},
	{"7.1.1.1", "permessage-deflate; server_no_context_takeover=1", "", 1},
	{"7.1.1.2", "permessage-deflate; client_no_context_takeover=true", "", 1},

	// Unknown and doubled parameters: section 7.1.
	{"7.1", "permessage-deflate; window=15", "", 1},
	{"7.1", "permessage-deflate; x", "", 1},
	{"7.1", "permessage-deflate; Server_No_Context_Takeover", "", 1},
	{"7.1", "permessage-deflate; server_no_context_takeover; server_no_context_takeover", "", 1},
	{"7.1", "permessage-deflate; client_no_context_takeover; client_no_context_takeover", "", 1},
	{"7.1", "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10", "", 1},
	{"7.1", "permessage-deflate; client_max_window_bits; client_max_window_bits=10", "", 1},

	// Several offers, the preferred one first: section 5.1.
	{"5.1", "permessage-deflate; server_max_window_bits=10, permessage-deflate", answerPlain + "; server_max_window_bits=10", 0},
	{"5.1", "permessage-deflate, permessage-deflate; server_max_window_bits=10", answerPlain, 0},
	{"5.1", "permessage-deflate; server_max_window_bits=99, permessage-deflate; server_max_window_bits=9",
		answerPlain + "; server_max_window_bits=9", 1},
	{"5.1", "permessage-deflate; x, permessage-deflate; y, permessage-deflate", answerPlain, 2},
	{"5.1", "permessage-deflate, permessage-deflate; x", answerPlain, 0},
	{"5.1", "permessage-deflate; x=1, permessage-deflate; server_max_window_bits", "", 2},
	{"R9.1", "permessage-bzip2, permessage-deflate", answerPlain, 0},
	{"R9.1", "permessage-deflate; client_max_window_bits, bbf-usp-protocol; eid=\"x\"", answerPlain, 0},
	{"R9.1", "permessage-bzip2; client_max_window_bits=3", "", 0},
	{"R9.1", "Permessage-Deflate", "", 0},
	{"R9.1", "x-webkit-deflate-frame", "", 0},
	{"R9.1", "permessage-deflate-frame", "", 0},

	// The grammar: RFC 6455, section 9.1.
	{"R9.1", "permessage-deflate;server_max_window_bits=\"10\"", answerPlain + "; server_max_window_bits=10", 0},
	{"R9.1", "permessage-deflate;server_max_window_bits=\"1\\0\"", answerPlain + "; server_max_window_bits=10", 0},
	{"R9.1", "permessage-deflate ;\tserver_max_window_bits = 10 , x", answerPlain + "; server_max_window_bits=10", 0},
	{"R9.1", ",, permessage-deflate ,", answerPlain, 0},
	{"R9.1", ",", "", 0},
	{"R9.1", "", "", 0},
	{"R9.1", "permessage-deflate;", malformed, 0},
	{"R9.1", "permessage-deflate;;x", malformed, 0},
	{"R9.1", "permessage-deflate; x=", malformed, 0},
	{"R9.1", "permessage-deflate; =1", malformed, 0},
	{"R9.1", "permessage-deflate; x=\"", malformed, 0},
	{"R9.1", "permessage-deflate; x=\"\"", malformed, 0},
	{"R9.1", "permessage-deflate; x=\"a b\"", malformed, 0},
	{"R9.1", "permessage-deflate; x=\"a\\", malformed, 0},
	{"R9.1", "permessage-deflate; x=\"a\"b", malformed, 0},
	{"R9.1", "permessage-deflate x", malformed, 0},
	{"R9.1", "permessage-deflate, ; x", malformed, 0},
	{"R9.1", "permessage-deflate=1", malformed, 0},
	{"R9.1", "permessage/deflate", malformed, 0},
	{"R9.1", "permessage-deflate; x=\xff", malformed, 0},
	{"R9.1", "permessage-deflate; x, y z", malformed, 1},
}

func TestOffers(t *testing.T) {
	d := newDeflateRig(t, nil)
	for _, tt := range offerCases {
		t.Run(tt.offer, func(t *testing.T) {
			d.t = t
			before := d.server.Stats().Deflate
			p := d.accept()
			defer p.end()
			p.feed([]byte(strings.TrimSuffix(upgradeHead, "\r\n") + "Sec-WebSocket-Extensions: " + tt.offer + "\r\n\r\n"))
			got := string(p.take())
			want := switching
			switch tt.answer {
			case "":
			case malformed:
				want = ""
				if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !p.eof {
					t.Errorf("got %q (section %s)", got, tt.section)
				}
			default:
				want = strings.TrimSuffix(switching, "\r\n") + "Sec-WebSocket-Extensions: " + tt.answer + "\r\n\r\n"
			}
			if want != "" && got != want {
				t.Errorf("got %q, want %q (section %s)", got, want, tt.section)
			}
			st := d.server.Stats().Deflate
			taken := uint64(0)
			if tt.answer != "" && tt.answer != malformed {
				taken = 1
			}
			if n := st.Declined - before.Declined; n != uint64(tt.decline) {
				t.Errorf("%d offers declined, want %d", n, tt.decline)
			}
			if n := st.Sessions - before.Sessions; n != taken {
				t.Errorf("%d sessions more", n)
			}
		})
	}
	d.t = t
}

// Lists on several lines are one list (RFC 6455, section 9.1).
func TestOffersOnLines(t *testing.T) {
	d := newDeflateRig(t, nil)
	p, answer := d.offers("permessage-deflate; x\r\nsec-websocket-extensions: foo\r\nSec-WebSocket-Extensions: " +
		"permessage-deflate; server_max_window_bits=12")
	defer p.end()
	if want := answerPlain + "; server_max_window_bits=12"; answer != want {
		t.Errorf("got %q, want %q", answer, want)
	}
}

// Without the option nothing is negotiated, nor looked at.
func TestOffersUnasked(t *testing.T) {
	r := newRig(t, nil)
	for _, offer := range []string{plainOffer, plainOffer + "; x=", "="} {
		p, answer := r.offers(offer)
		if answer != "" {
			t.Errorf("%q is answered with %q", offer, answer)
		}
		p.end()
	}
}

// FuzzOffers holds the parser against gobwas/httphead and gobwas/ws/wsflate where
// those agree that the header is right.
func FuzzOffers(f *testing.F) {
	for _, tt := range offerCases {
		f.Add(tt.offer)
	}
	f.Fuzz(func(t *testing.T, value string) {
		taken, declined, ok := negotiate(value)
		if declined < 0 || !ok && taken != 0 {
			t.Fatalf("%d, %d, %v", taken, declined, ok)
		}
		if bits := taken & windowBits; taken != 0 && (bits < 8 || taken&^(windowBits|windowSaid) != 0) {
			t.Fatalf("taken as %x", taken)
		}
		if !ok || strings.ContainsAny(value, "\"\\") {
			return // httphead does not check that what is quoted is a token
		}
		options, right := httphead.ParseOptions([]byte(value), nil)
		if !right {
			return // nor does it know empty elements
		}
		want, refused := byte(0), 0
		for _, o := range options {
			if string(o.Name) != deflateName || want != 0 {
				continue
			}
			if bits, good := byModel(o); good {
				want = bits
			} else {
				refused++
			}
		}
		if taken != want || declined != refused {
			t.Fatalf("taken %x, %d declined, want %x and %d", taken, declined, want, refused)
		}
	})
}

// byModel is what becomes of an offer, by wsflate and by what it does not check.
func byModel(o httphead.Option) (bits byte, good bool) {
	var p wsflate.Parameters
	if p.Parse(o) != nil {
		return 0, false
	}
	good = true
	var names []string
	o.Parameters.ForEach(func(k, v []byte) bool {
		names = append(names, string(k))
		if bytes.HasSuffix(k, []byte("takeover")) && len(v) > 0 || bytes.HasPrefix(v, []byte("0")) || bytes.HasPrefix(v, []byte("+")) {
			good = false
		}
		if string(k) == "server_max_window_bits" {
			bits |= windowSaid
		}
		return true
	})
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		good = false
	}
	if n := p.ServerMaxWindowBits; bits != 0 {
		good = good && n.Defined()
		return bits | byte(n), good
	}
	return fullWindow, good
}

package stats

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// full is a snapshot in which every number differs from every other, so that a
// metric that reads the wrong field shows.
func full() Snapshot {
	return Snapshot{
		Version: "1.2.3", Revision: "abc", Ready: true, Insecure: true,
		Connections: 101, ConnectionLimit: 102, Accepted: 103, Refused: map[string]uint64{"cap": 104},
		Sessions: 105, HTTPConnections: 106, HTTPHandedOff: 107, HTTPRefused: 108,
		Messages: Traffic{109, 110}, Frames: Traffic{111, 112}, Bytes: Traffic{113, 114},
		Handshakes: map[string]uint64{"ok": 115}, Closes: map[string]uint64{"no_pong": 116, "slow": 117},
		Loops: []Loop{
			{Connections: 118, InboxBytes: 119, Rejected: 120, Turns: 121, Panics: 122,
				PutOffs: 901, PutOffBytes: 902, MostWork: 903, MostBytes: 904, MostPosts: 905, Timers: 906},
			{Connections: 123, InboxBytes: 124, Rejected: 125, Turns: 126, Panics: 127,
				PutOffs: 911, PutOffBytes: 912, MostWork: 913, MostBytes: 914, MostPosts: 915, Timers: 916},
		},
		InboxLimit: 128, PendingBytes: 129, SlowConsumers: 130,
		Pool:   Pool{Workers: 131, Busy: 132, QueueJobs: 133, QueueBytes: 134, QueueLimit: 135, Done: 136, Rejected: 137},
		Fanout: Fanout{Publications: 138, Rejected: 139, Deliveries: 140, Encodings: 141, EncodeErrors: 142},
		Topics: 143, Subscriptions: 144,
		Commands: map[string]uint64{"publish": 145}, Errors: map[uint32]uint64{103: 146},
		History: History{
			Topics: 154, Publications: 155, Bytes: 156, Limit: 157, Recovered: map[string]uint64{"yes": 158}, Lost: 159, NewsDropped: 160,
		},
		Memory: map[string]int64{"pool": 162}, MemoryUsed: 163, MemoryBudget: 164, MemoryRefusing: true,
		RateLimited: 165, UserLimited: 166,
		Malformed: 152, BacklogRejected: 153, EventIDsMalformed: 161, NotEncoded: 917,
		RPCPanics: 147, RPCTimeouts: 148,
		Deflate: Deflate{
			Sessions: 162, Declined: 163, Messages: Traffic{164, 165}, Plain: Traffic{166, 167}, Deflated: Traffic{168, 169},
			Refused: Traffic{170, 171}, Bombs: 172, QueueBytes: 173,
		},
		TokensIssued:  map[string]uint64{"client_credentials": 149},
		TokensRefused: map[string]uint64{"invalid_client": 150},
		Reloads:       map[string]uint64{"ok": 162},
		AcceptErrors:  map[string]uint64{"emfile": 163},
		LoopLag:       164,
		Revocations:   1650, ClientLookups: map[string]uint64{"found": 1651},
		StoreFailures: 165, StoreFailing: true, HTTPPanics: 166,
		API:     map[APILabel]uint64{{"publish", "0"}: 151},
		Backend: fullBackend,
		Broker: Broker{On: true, Connected: true, Losses: 167, Waiting: 168, QueueBytes: 169, QueueLimit: 170,
			Publications: map[string]uint64{"unsent": 171}, Deliveries: map[string]uint64{"repaired": 172}},
		Nodes: &Nodes{Known: 921, Disagreeing: 922, Changes: map[string]uint64{"gone": 923}, Surveys: 924, Asked: 925,
			Unanswered: 926, Busy: 927, Answered: 928, Refused: 929, Unsaid: 930, Malformed: 931},
		Leaf: &Leaf{
			Up: true, Waiting: 941, WaitingBytes: 942, WaitingLimit: 943, Forwarded: 944, Refused: 945, Dropped: 946, Received: 947,
		},
	}
}

var wantFull = map[string]float64{
	`perch_nodes`:                             921,
	`perch_nodes_disagreeing`:                 922,
	`perch_node_changes_total{change="gone"}`: 923,
	`perch_node_surveys`:                      924,
	`perch_node_surveys_total`:                925,
	`perch_node_unanswered_total`:             926,
	`perch_node_surveys_refused_total`:        927,
	`perch_node_answers_total`:                928,
	`perch_node_answers_refused_total`:        929,
	`perch_node_news_dropped_total`:           930,
	`perch_node_messages_malformed_total`:     931,
	`perch_leaf_up`:                           1,
	`perch_leaf_waiting`:                      941,
	`perch_leaf_waiting_bytes`:                942,
	`perch_leaf_waiting_bytes_limit`:          943,
	`perch_leaf_forwarded_total`:              944,
	`perch_leaf_refused_total`:                945,
	`perch_leaf_dropped_total`:                946,
	`perch_leaf_received_total`:               947,

	`perch_build_info{goversion="` + runtime.Version() + `",revision="abc",version="1.2.3"}`: 1,
	`perch_ready`:                                           1,
	`perch_insecure`:                                        1,
	`perch_connections`:                                     101,
	`perch_connections_limit`:                               102,
	`perch_connections_accepted_total`:                      103,
	`perch_connections_refused_total{cause="cap"}`:          104,
	`perch_sessions`:                                        105,
	`perch_http_connections`:                                106,
	`perch_http_handed_off_total`:                           107,
	`perch_http_refused_total`:                              108,
	`perch_messages_total{direction="in"}`:                  109,
	`perch_messages_total{direction="out"}`:                 110,
	`perch_frames_total{direction="in"}`:                    111,
	`perch_frames_total{direction="out"}`:                   112,
	`perch_bytes_total{direction="in"}`:                     113,
	`perch_bytes_total{direction="out"}`:                    114,
	`perch_handshakes_total{outcome="ok"}`:                  115,
	`perch_closes_total{reason="no_pong"}`:                  116,
	`perch_closes_total{reason="slow"}`:                     117,
	`perch_loop_connections{loop="0"}`:                      118,
	`perch_inbox_bytes{loop="0"}`:                           119,
	`perch_inbox_rejected_total{loop="0"}`:                  120,
	`perch_loop_turns_total{loop="0"}`:                      121,
	`perch_loop_panics_total{loop="0"}`:                     122,
	`perch_loop_connections{loop="1"}`:                      123,
	`perch_inbox_bytes{loop="1"}`:                           124,
	`perch_inbox_rejected_total{loop="1"}`:                  125,
	`perch_loop_turns_total{loop="1"}`:                      126,
	`perch_loop_panics_total{loop="1"}`:                     127,
	`perch_loop_put_offs_total{loop="0"}`:                   901,
	`perch_loop_put_off_bytes{loop="0"}`:                    902,
	`perch_loop_turn_work_most{loop="0"}`:                   903,
	`perch_loop_turn_bytes_most{loop="0"}`:                  904,
	`perch_loop_turn_posts_most{loop="0"}`:                  905,
	`perch_loop_put_offs_total{loop="1"}`:                   911,
	`perch_loop_put_off_bytes{loop="1"}`:                    912,
	`perch_loop_turn_work_most{loop="1"}`:                   913,
	`perch_loop_turn_bytes_most{loop="1"}`:                  914,
	`perch_loop_turn_posts_most{loop="1"}`:                  915,
	`perch_loop_timers{loop="0"}`:                           906,
	`perch_loop_timers{loop="1"}`:                           916,
	`perch_inbox_limit_bytes`:                               128,
	`perch_pending_bytes`:                                   129,
	`perch_slow_consumers_total`:                            130,
	`perch_pool_workers`:                                    131,
	`perch_pool_busy_workers`:                               132,
	`perch_pool_queue_jobs`:                                 133,
	`perch_pool_queue_bytes`:                                134,
	`perch_pool_queue_limit_bytes`:                          135,
	`perch_pool_jobs_total`:                                 136,
	`perch_pool_rejected_total`:                             137,
	`perch_publications_total`:                              138,
	`perch_publications_rejected_total`:                     139,
	`perch_fanout_deliveries_total`:                         140,
	`perch_fanout_encodings_total`:                          141,
	`perch_fanout_encode_errors_total`:                      142,
	`perch_broker_connected`:                                1,
	`perch_broker_losses_total`:                             167,
	`perch_broker_waiting`:                                  168,
	`perch_broker_queue_bytes`:                              169,
	`perch_broker_queue_bytes_limit`:                        170,
	`perch_broker_publications_total{outcome="unsent"}`:     171,
	`perch_broker_deliveries_total{outcome="repaired"}`:     172,
	`perch_topics`:                                          143,
	`perch_subscriptions`:                                   144,
	`perch_commands_total{command="publish"}`:               145,
	`perch_errors_total{code="103"}`:                        146,
	`perch_malformed_messages_total`:                        152,
	`perch_backlog_rejected_total`:                          153,
	`perch_event_ids_malformed_total`:                       161,
	`perch_replies_not_encoded_total`:                       917,
	`perch_memory_bytes{layer="pool"}`:                      162,
	`perch_memory_used_bytes`:                               163,
	`perch_memory_budget_bytes`:                             164,
	`perch_memory_refusing`:                                 1,
	`perch_commands_rate_limited_total`:                     165,
	`perch_user_sessions_refused_total`:                     166,
	`perch_history_topics`:                                  154,
	`perch_history_publications`:                            155,
	`perch_history_bytes`:                                   156,
	`perch_history_bytes_limit`:                             157,
	`perch_recoveries_total{recovered="yes"}`:               158,
	`perch_subscriptions_lost_total`:                        159,
	`perch_join_leave_dropped_total`:                        160,
	`perch_deflate_sessions_total`:                          162,
	`perch_deflate_declined_total`:                          163,
	`perch_deflate_messages_total{direction="in"}`:          164,
	`perch_deflate_messages_total{direction="out"}`:         165,
	`perch_deflate_plain_bytes_total{direction="in"}`:       166,
	`perch_deflate_plain_bytes_total{direction="out"}`:      167,
	`perch_deflate_bytes_total{direction="in"}`:             168,
	`perch_deflate_bytes_total{direction="out"}`:            169,
	`perch_deflate_refused_total{direction="in"}`:           170,
	`perch_deflate_refused_total{direction="out"}`:          171,
	`perch_deflate_bombs_total`:                             172,
	`perch_deflate_queue_bytes`:                             173,
	`perch_rpc_panics_total`:                                147,
	`perch_rpc_timeouts_total`:                              148,
	`perch_tokens_issued_total{grant="client_credentials"}`: 149,
	`perch_tokens_refused_total{error="invalid_client"}`:    150,
	`perch_api_requests_total{code="0",method="publish"}`:   151,
	`perch_config_reloads_total{outcome="ok"}`:              162,
	`perch_accept_errors_total{cause="emfile"}`:             163,
	`perch_loop_lag_seconds`:                                164,
	`perch_token_store_failures_total`:                      165,
	`perch_token_store_failing`:                             1,
	`perch_revocations`:                                     1650,
	`perch_client_lookups_total{outcome="found"}`:           1651,
	`perch_http_panics_total`:                               166,
}

func get(t *testing.T, snapshot func() Snapshot, accept string) (*http.Response, []byte) {
	t.Helper()
	srv := httptest.NewServer(Handler(NewRegistry(snapshot), slog.New(slog.DiscardHandler)))
	defer srv.Close()
	req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

// parse reads a page back into values by name and labels, in the notation of
// the text format.
func parse(t *testing.T, page []byte) (map[string]float64, map[string]*dto.MetricFamily) {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("page does not parse: %v", err)
	}
	values := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			sort.Strings(labels)
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				values[key] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				values[key] = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				histogramValues(values, key, m.GetHistogram())
			}
		}
	}
	return values, families
}

func TestPageShowsEveryNumber(t *testing.T) {
	resp, page := get(t, full, "")
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("status %d, type %q", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	values, families := parse(t, page)
	maps.Copy(wantFull, wantBackend)
	for key, want := range wantFull {
		if got, ok := values[key]; !ok || got != want {
			t.Errorf("%s = %v (there: %v), want %v", key, got, ok, want)
		}
	}
	for key := range values {
		if _, ok := wantFull[key]; strings.HasPrefix(key, namespace) && !ok {
			t.Errorf("%s is on the page but not in the test", key)
		}
	}
	for name, f := range families {
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		isCounter := f.GetType() == dto.MetricType_COUNTER
		if strings.HasPrefix(name, namespace) && isCounter != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %v", name, f.GetType())
		}
	}
	for _, name := range []string{"go_goroutines", "go_memstats_heap_inuse_bytes"} {
		if families[name] == nil {
			t.Errorf("%s is not on the page", name)
		}
	}
	if runtime.GOOS == "linux" && families["process_resident_memory_bytes"] == nil {
		t.Error("process_resident_memory_bytes is not on the page")
	}
}

func TestPageInOpenMetrics(t *testing.T) {
	resp, page := get(t, full, "application/openmetrics-text; version=1.0.0")
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/openmetrics-text") {
		t.Errorf("type %q", resp.Header.Get("Content-Type"))
	}
	if !bytes.HasSuffix(page, []byte("# EOF\n")) {
		t.Error("page does not end as OpenMetrics does")
	}
}

func TestEmptySnapshot(t *testing.T) {
	_, page := get(t, func() Snapshot { return Snapshot{} }, "")
	values, _ := parse(t, page)
	for _, key := range []string{"perch_connections", "perch_ready", "perch_insecure"} {
		if got, ok := values[key]; !ok || got != 0 {
			t.Errorf("%s = %v (there: %v), want 0", key, got, ok)
		}
	}
}

// Every field of Snapshot is set in full, so that a field that is added without
// a metric is seen there.
func TestFullSetsEveryField(t *testing.T) {
	var check func(path string, v reflect.Value)
	check = func(path string, v reflect.Value) {
		if v.IsZero() {
			t.Errorf("%s is zero in full()", path)
		}
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				check(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		}
		if v.Kind() == reflect.Slice {
			for i := range v.Len() {
				check(fmt.Sprintf("%s[%d]", path, i), v.Index(i))
			}
		}
	}
	check("Snapshot", reflect.ValueOf(full()))
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(NewRegistry(full))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, namespace) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// A label that is not UTF-8 must not cost the page.
func TestBadLabel(t *testing.T) {
	_, page := get(t, func() Snapshot {
		return Snapshot{Connections: 7, Closes: map[string]uint64{"a\xffb": 1}}
	}, "")
	values, _ := parse(t, page)
	if values["perch_connections"] != 7 {
		t.Errorf("perch_connections = %v, want 7", values["perch_connections"])
	}
	if values["perch_closes_total{reason=\"a\uFFFDb\"}"] != 1 {
		t.Errorf("the replaced label is not on the page:\n%s", page)
	}
}

func TestRegistriesAreApart(t *testing.T) {
	for range 2 {
		if _, err := NewRegistry(full).Gather(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := NewRegistry(full).Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, f := range families {
		known[f.GetName()] = true
		if strings.HasPrefix(f.GetName(), namespace) && !bytes.Contains(doc, []byte("`"+f.GetName()+"`")) {
			t.Errorf("%s is not in docs/metrics.md", f.GetName())
		}
	}
	for _, word := range strings.FieldsFunc(string(doc), func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z')
	}) {
		if strings.HasPrefix(word, namespace) && !known[word] {
			t.Errorf("docs/metrics.md names %s, which does not exist", word)
		}
	}
}

func TestReadProcess(t *testing.T) {
	before := ReadProcess()
	if before.RSS < 1<<20 {
		t.Errorf("RSS = %d bytes, want a megabyte at least", before.RSS)
	}
	for end := time.Now().Add(30 * time.Millisecond); time.Now().Before(end); {
	}
	if used := ReadProcess().CPU - before.CPU; used < time.Millisecond {
		t.Errorf("30 ms of spinning took %v of CPU", used)
	}
}

package main

import "testing"

// TestBenchRepeats: the line of a report runs the same again, without its files
// and its secrets.
func TestBenchRepeats(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"quick":  {[]string{"compare", "--quick", "--rounds", "3"}, "bench compare --quick --rounds 3"},
		"cases":  {[]string{"compare", "--only", "idle", "--only", "echo, 16 at once"}, "bench compare --only idle --only 'echo, 16 at once'"},
		"files":  {[]string{"compare", "--json", "a", "--csv", "b", "--html", "c", "--markdown", "d", "-q"}, "bench compare"},
		"off":    {[]string{"compare", "--quick=false"}, "bench compare --quick=false"},
		"steps":  {[]string{"idle", "--steps", "10,20", "--topic", "it's {i}"}, `bench idle --steps 10,20 --topic 'it'\''s {i}'`},
		"secret": {[]string{"echo", "--secret", "hidden", "--url", "ws://127.0.0.1:1/ws"}, "bench echo --secret … --url ws://127.0.0.1:1/ws"},
	} {
		t.Run(name, func(t *testing.T) {
			root := benchCommand()
			cmd, rest, err := root.Find(tt.args)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Fatal(err)
			}
			if got := repeats(cmd, cmd.Flags().Args()); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

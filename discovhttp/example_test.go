package discovhttp_test

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/discovhttp"
)

// The page, for operators and probes, on a port of its own.
func ExampleNew() {
	page := discovhttp.New()
	pub := discov.NewPublisher([]string{"127.0.0.1:2379"}, "user.rpc", "10.0.0.7:8080", page.Show, quiet)
	defer pub.Stop()

	admin := http.NewServeMux()
	admin.Handle("/discov/", http.StripPrefix("/discov", page))

	answer := httptest.NewRecorder()
	admin.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/discov/readyz", http.NoBody))
	fmt.Print(answer.Code, " ", answer.Body)
	// Output: 503 user.rpc idle
}

// The buttons are for those who know the password, for which the browser asks.
func ExampleWithControl() {
	password := []byte("secret") // yours
	isOperator := func(r *http.Request) bool {
		_, given, ok := r.BasicAuth()
		return ok && subtle.ConstantTimeCompare([]byte(given), password) == 1
	}
	page := discovhttp.New(discovhttp.WithControl(isOperator))
	locked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isOperator(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="operators"`)
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		}
		page.ServeHTTP(w, r)
	})

	answer := httptest.NewRecorder()
	locked.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	fmt.Println(answer.Code)
	// Output: 401
}
